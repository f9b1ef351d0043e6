// The new job page: after every change the form is fetched again from its own address and changed where it differs,
// so that all rules, sizes and words come from the server. Without script the button "Look it up" does the same.

import { fetchPage, morph } from "./live.js";

const TYPING_PAUSE_MS = 600;
const form = document.getElementById("make");
let running = null;
let timer = null;
let looked = "";

/** Whether a field is no longer as the server sent it. */
function edited(field) {
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (field.nodeName === "SELECT") {
    const sent = [...field.options].findIndex((one) => one.defaultSelected);
    return field.selectedIndex !== Math.max(sent, 0);
  }
  return field.value !== field.defaultValue;
}

const fields = () => new URLSearchParams([...new FormData(form)].filter(([, value]) => typeof value === "string"));

/** Take over what the server filled in, but nothing that the user has changed since. */
function settle(sent) {
  return (now, wanted) => {
    if (now.type === "checkbox" || now.type === "radio") now.checked = wanted.hasAttribute("checked");
    else if (now.nodeName === "INPUT" && now !== document.activeElement) {
      const untouched = now.value === (sent.get(now.name) ?? "");
      if (untouched || now.type === "hidden") now.value = wanted.getAttribute("value") ?? "";
    }
  };
}

/** Fetch the form again, unless nothing has changed since it was; `again` fetches it all the same. */
async function look(again = false) {
  stop();
  const sent = fields();
  if (!again && sent.toString() === looked) return;
  running = new AbortController();
  const own = running;
  form.setAttribute("aria-busy", "true");
  try {
    const address = `/new?${sent}`;
    const page = await fetchPage(address, own.signal);
    const wanted = page.getElementById("make");
    if (own !== running) return;
    if (!wanted) throw new Error("no form");
    morph(form, wanted, settle(sent));
    looked = sent.toString();
    history.replaceState(null, "", address);
    stop();
  } catch (error) {
    if (own === running) stop(true);
  }
}

/** End the look-up that runs or waits, if any, and say whether it failed: the page does not show what it should then. */
function stop(failed = false) {
  clearTimeout(timer);
  running?.abort();
  running = null;
  form.removeAttribute("aria-busy");
  form.classList.toggle("stale", failed);
}

form.addEventListener("change", (event) => {
  if ("look" in event.target.dataset) look();
});
form.addEventListener("input", (event) => {
  if (!("look" in event.target.dataset) || event.target.type === "checkbox" || event.target.type === "radio") return;
  stop();
  timer = setTimeout(look, TYPING_PAUSE_MS);
});
form.addEventListener("submit", (event) => {
  if (event.submitter?.formMethod === "get") {
    event.preventDefault();
    look(true);
    return;
  }
  stop();
  // A second press does nothing; should it come through, the form's name makes it the same job.
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => delete form.dataset.sent);
window.addEventListener("pagehide", () => stop());
document.getElementById("problem")?.focus();
// What was typed before this script ran, or what a browser filled in again, has told nobody.
if ([...form.querySelectorAll("[data-look]")].some(edited)) look();
