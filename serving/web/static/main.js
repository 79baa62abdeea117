// The page: what its controls do.

import { clearAnswer, notice, showAnswer, showSource, standBack } from "./answer.js";
import { read } from "./api.js";
import { Gallery } from "./gallery.js";
import { Pad } from "./pad.js";

const AUTO_PAUSE_MS = 450; // without a new stroke
const element = (id) => document.getElementById(id);
const pad = new Pad(element("pad"));
const gallery = new Gallery();
let shown = null; // the file that the panel shows; null: the drawing
let request = new AbortController(); // of the panel; the latest one wins
let timer = 0;

function stop() {
  clearTimeout(timer);
  request.abort();
  request = new AbortController();
}

async function readNow() {
  stop();
  const { signal } = request;
  if (!shown && pad.empty) {
    notice("There is nothing to read yet. Draw a letter or a digit first.");
    return;
  }
  const file = shown;
  standBack();
  try {
    const picture = file ?? await pad.png();
    const answer = await read(picture, { alphabet: element("alphabet").value, signal, onWait: notice });
    if (signal.aborted) return;
    notice("");
    showSource(file);
    showAnswer(answer);
  } catch (error) {
    if (signal.aborted) return;
    clearAnswer();
    if (file) showSource(file);
    notice(error.code ? error.message : "This file cannot be opened.");
  }
}

function showControls() {
  element("undo").disabled = pad.empty;
  element("clear").disabled = pad.empty && !shown;
  element("pad-hint").hidden = !pad.empty;
}

function drawingChanged() {
  stop();
  showControls();
  notice("");
  if (pad.empty) {
    clearAnswer();
    return;
  }
  standBack();
  if (element("auto").checked && !pad.drawing) {
    timer = setTimeout(readNow, AUTO_PAUSE_MS);
  }
}

function clear() {
  shown = null;
  pad.clear();
}

function take(list) {
  const files = [...list];
  if (files.length === 1) {
    pad.clear();
    [shown] = files;
    showControls();
    readNow();
  } else if (files.length) {
    gallery.add(files, element("alphabet").value);
    element("gallery").scrollIntoView({ block: "nearest" });
  }
}

pad.addEventListener("start", () => {
  shown = null;
  drawingChanged();
});
pad.addEventListener("change", drawingChanged);
element("undo").addEventListener("click", () => pad.undo());
element("clear").addEventListener("click", clear);
element("predict").addEventListener("click", readNow);
element("alphabet").addEventListener("change", () => {
  if (shown || !pad.empty) readNow();
  if (!gallery.empty) gallery.read(element("alphabet").value);
});
element("choose").addEventListener("click", () => element("files").click());
element("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
element("key-cancel").addEventListener("click", () => element("key-dialog").close());

document.addEventListener("keydown", (event) => {
  const within = (selector) => event.target instanceof Element && event.target.closest(selector);
  if (event.defaultPrevented || within("dialog, input:not([type=checkbox]), select, textarea")) return;
  const modified = event.ctrlKey || event.metaKey;
  if (modified && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "z") pad.undo();
  else if (modified || event.altKey) return;
  else if (event.key === "Enter" && !within("button, a, input")) readNow();
  else if (event.key === "Escape" || event.key === "Delete") clear();
  else return;
  event.preventDefault();
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});

const brings = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  element("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  element("drop").hidden = true;
  if (!brings(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files);
});
