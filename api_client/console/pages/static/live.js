// Keeps pages up to date: regions are fetched anew from the page's own address, a job's log comes as an event stream.
// Elements with `data-region` and an id are regions; `data-period` is their pace in seconds. A page whose regions are
// fetched from another address than its own names it in `data-address`.

const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]/g;
const MOST_ROWS = 2000;
const STATUS_PAUSE_MS = 700;
const ENDED_PAUSE_MS = 4000;

/** Change one element into another where they differ; focus, selection and open parts stay as they are. */
export function morph(now, wanted, settle = () => {}) {
  for (const { name } of [...now.attributes])
    if (!wanted.hasAttribute(name) && name !== "open") now.removeAttribute(name);
  for (const { name, value } of wanted.attributes)
    if (now.getAttribute(name) !== value && name !== "open") now.setAttribute(name, value);
  const kept = new Set([...wanted.children].map((child) => child.id).filter(Boolean));
  let at = now.firstChild;
  for (const next of [...wanted.childNodes]) {
    while (at && at.id && !kept.has(at.id)) at = drop(at);
    const own = next.id ? [...now.children].find((child) => child.id === next.id) : undefined;
    // What stands before it goes rather than that it moves: an element that is moved loses the focus.
    while (own && at && at !== own && !(at.id && kept.has(at.id))) at = drop(at);
    if (own && own !== at) now.insertBefore(own, at);
    const match = own ?? (at && !at.id && !next.id && at.nodeName === next.nodeName ? at : undefined);
    if (!match || match.nodeName !== next.nodeName) {
      now.insertBefore(document.importNode(next, true), at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    if (match.nodeType !== Node.ELEMENT_NODE) {
      if (match.nodeValue !== next.nodeValue) match.nodeValue = next.nodeValue;
    } else morph(match, next, settle);
  }
  while (at) at = drop(at);
  settle(now, wanted);
}

function drop(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

/** Fetch a page as a document; a session that has ended shows the login by loading the page again. */
export async function fetchPage(address, signal) {
  const answer = await fetch(address, { signal, headers: { Accept: "text/html" }, credentials: "same-origin" });
  if (answer.status === 401) {
    location.reload();
    throw new DOMException("the session has ended", "AbortError");
  }
  if (!answer.ok && answer.status !== 422) throw new Error(`status ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** Say whether the page is live: `on`, `lost` or `ended`. */
function say(state) {
  for (const light of document.querySelectorAll("[data-live]")) {
    light.hidden = false;
    light.className = `live ${state}`;
    const words = light.dataset[state] ?? "";
    if (light.textContent !== words) light.textContent = words;
  }
}

async function update() {
  const named = document.querySelector("[data-address]");
  const fresh = await fetchPage(named ? named.dataset.address : location.href);
  for (const region of document.querySelectorAll("[data-region]")) {
    const wanted = fresh.getElementById(region.id);
    if (wanted) morph(region, wanted);
  }
  // so that a tab among others says how its job stands
  if (fresh.title && fresh.title !== document.title) {
    document.title = fresh.title;
    const [icon, wanted] = [document, fresh].map((page) => page.querySelector('link[rel="icon"]'));
    if (icon && wanted) icon.href = wanted.getAttribute("href");
    if (document.hidden && notifies()) new Notification(fresh.title, { icon: icon?.href, tag: location.pathname });
  }
  offerCopies();
}

let latest = Promise.resolve();

/** Bring the regions up to date. One after the other: an answer that comes late must not undo a newer one. */
function refresh() {
  const own = latest.then(update);
  latest = own.catch(() => {});
  return own;
}

/** Ask for refreshes at a bounded pace; what is asked for during one gets another after it. */
function paceRefreshes() {
  let wanted = false;
  let busy = false;
  const turn = async () => {
    wanted = false;
    await refresh().catch(() => {});
    busy = false;
    if (wanted) ask();
  };
  const ask = () => {
    wanted = true;
    if (busy) return;
    busy = true;
    setTimeout(turn, STATUS_PAUSE_MS);
  };
  return ask;
}

function refreshEvery(seconds) {
  const again = () => setTimeout(turn, seconds * 1000);
  const turn = async () => {
    if (document.hidden) return again();
    try {
      await refresh();
      say("on");
    } catch (error) {
      if (error.name !== "AbortError") say("lost");
    }
    again();
  };
  say("on");
  document.addEventListener("visibilitychange", () => document.hidden || refresh().catch(() => say("lost")));
  again();
}

// copying and telling, where the browser has it and lets us

const notifies = () => "Notification" in window && Notification.permission === "granted";

/** Ask once, by a press, whether the browser may tell of a job's end while its tab is not looked at. */
function offerNotifications() {
  const button = document.getElementById("notify");
  const ended = document.getElementById("log")?.dataset.ended === "yes";
  if (!button || ended || !("Notification" in window) || !window.isSecureContext || Notification.permission !== "default") return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    if ((await Notification.requestPermission()) === "granted") button.textContent = button.dataset.on;
    else button.hidden = true;
  });
}

/** Digests, paths and ids are copied with a press on the button after them; it is no part of what the server sent. */
function offerCopies() {
  const words = document.getElementById("copying");
  if (!words || !navigator.clipboard) return;
  for (const text of document.querySelectorAll("[data-copy]")) {
    if (text.nextElementSibling?.className === "copy") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = words.dataset.copyWord;
    button.setAttribute("aria-label", `${words.dataset.copyWord} ${text.textContent}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text.textContent);
      words.textContent = button.textContent = words.dataset.copied;
      setTimeout(() => (button.textContent = words.dataset.copyWord), 2000);
    });
    text.after(button);
  }
}

// the job page

const LEVELS = ["debug", "info", "warning", "error"];

function followLog(log) {
  const chosen = () => new Set([...document.querySelectorAll("#kinds input:checked")].map((box) => box.value));
  const known = new Set([...document.querySelectorAll("#kinds input")].map((box) => box.value));
  const frame = log.parentElement; // it scrolls, and is what a reader is told to be a log: a list keeps its own role
  const atEnd = () => frame.scrollHeight - frame.scrollTop - frame.clientHeight < 24;
  const toEnd = () => (frame.scrollTop = frame.scrollHeight);

  const filter = () => {
    const groups = chosen();
    let shown = 0;
    for (const row of log.children) {
      row.hidden = !groups.has(row.dataset.kind);
      shown += row.hidden ? 0 : 1;
    }
    document.getElementById("log-empty").hidden = shown > 0;
    toEnd();
  };
  const add = (event) => {
    if (event.kind === "Progress" || log.dataset.still) return; // an older part of the log stays as it is
    if (LEVELS.indexOf(event.level) < LEVELS.indexOf(log.dataset.level)) return;
    if (!event.message.toLowerCase().includes(log.dataset.find.toLowerCase())) return;
    const follow = atEnd();
    const row = logRow(event, log.dataset, known);
    row.hidden = !chosen().has(row.dataset.kind);
    log.append(row);
    if (log.children.length > MOST_ROWS) log.firstElementChild.remove();
    if (!row.hidden) document.getElementById("log-empty").hidden = true;
    if (follow) toEnd();
  };

  document.getElementById("kinds").addEventListener("change", (change) => {
    if (change.target.type === "checkbox") filter();
    else document.getElementById("kinds").submit(); // by level or text the server chooses
  });
  // The page was fetched with a filter of its own where its address has one; only then are entries missing here.
  if (!new URLSearchParams(location.search).has("kind")) filter();
  else document.getElementById("kinds").addEventListener("change", () => document.getElementById("kinds").submit());
  const target = location.hash.startsWith("#e-") && document.getElementById(location.hash.slice(1));
  if (target) target.scrollIntoView({ block: "center" });
  else toEnd();
  followStream(log, add);
}

function followStream(log, add) {
  let last = log.dataset.after;
  let pause = 1000;
  const status = paceRefreshes();
  const connect = () => {
    const stream = new EventSource(`${log.dataset.events}&after=${encodeURIComponent(last)}`);
    const retry = () => {
      stream.close();
      say("lost");
      setTimeout(connect, pause);
      pause = Math.min(2 * pause, 15000);
      refresh().catch(() => {}); // shows the login if that is why
    };
    stream.onopen = () => {
      say("on");
      pause = 1000;
    };
    stream.onmessage = (message) => {
      last = message.lastEventId || last;
      add(JSON.parse(message.data));
      status();
    };
    stream.addEventListener("problem", retry);
    stream.addEventListener("end", async () => {
      stream.close();
      await refresh().catch(() => {});
      end();
    });
    stream.onerror = retry;
  };
  // A job that has ended may be replayed from elsewhere: new entries in its log say so.
  const end = () => {
    say("ended");
    const timer = setInterval(look, ENDED_PAUSE_MS);
    document.addEventListener("visibilitychange", look);
    let looking = false;
    async function look() {
      if (document.hidden || looking) return;
      looking = true;
      if (await hasMore(log, last)) {
        clearInterval(timer);
        document.removeEventListener("visibilitychange", look);
        status();
        connect();
      } else looking = false;
    }
  };
  if (log.dataset.ended === "yes") end();
  else connect();
}

/** Whether a job's log has entries after one; not while the console cannot be asked, nor once the job has expired. */
async function hasMore(log, after) {
  try {
    const answer = await fetch(`${log.dataset.entries}?limit=1&after=${encodeURIComponent(after)}`);
    return answer.ok && (await answer.json()).events.length > 0;
  } catch {
    return false;
  }
}

function logRow(event, words, known) {
  const row = document.createElement("li");
  row.id = `e-${event.id}`;
  row.className = event.level + (event.kind === "Command success" ? " done" : "");
  row.dataset.kind = known.has(event.kind) ? event.kind : "other";
  const time = document.createElement("time");
  time.dateTime = event.time;
  time.textContent = new Date(Date.parse(event.time) + words.offset * 60000).toISOString().slice(11, 19);
  const link = document.createElement("a");
  link.className = "at";
  link.href = `${words.page}?line=${encodeURIComponent(event.id)}#e-${event.id}`;
  link.setAttribute("aria-label", words.link);
  link.append(time);
  const kind = document.createElement("span");
  kind.className = "kind";
  kind.textContent = event.kind;
  const said = document.createElement("span");
  said.className = "said";
  if (event.level === "warning" || event.level === "error") {
    const level = document.createElement("span");
    level.className = "level";
    level.textContent = words[event.level];
    said.append(level);
  }
  if (event.kind === "Job" && event.stage) said.append(`${event.stage}: `);
  said.append(event.message.replaceAll("\r\n", "\n").replace(UNSAFE, escaped));
  row.append(link, kind, said);
  return row;
}

function escaped(character) {
  return `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
}

document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && document.querySelector("details.confirm[open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});

const log = document.getElementById("log");
const paced = document.querySelector("[data-period]");
for (const button of document.querySelectorAll("[data-without-script]")) button.hidden = true;
if (log) followLog(log);
offerNotifications();
offerCopies();
if (paced) refreshEvery(Number(paced.dataset.period));
