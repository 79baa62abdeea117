// Several pictures: a table of what was read in each, and the same as CSV.

import { paint, percent, sureness } from "./answer.js";
import { read } from "./api.js";

const AT_A_TIME = 4;
const element = (id) => document.getElementById(id);

function cell(row, label) {
  const made = row.insertCell();
  made.dataset.label = label;
  return made;
}

function thumbnail(file) {
  const image = document.createElement("img");
  image.width = image.height = 48;
  image.alt = "";
  image.loading = "lazy";
  image.src = URL.createObjectURL(file);
  image.addEventListener("error", () => { // a browser shows no TIFF
    const text = document.createElement("span");
    text.className = "no-thumbnail";
    text.textContent = file.name.includes(".") ? file.name.split(".").pop().slice(0, 4) : "?";
    image.replaceWith(text);
  });
  return image;
}

// RFC 4180; what a spreadsheet would run as a formula gets a ' before it.
function csvField(value) {
  const text = String(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export class Gallery {
  #entries = []; #stop = new AbortController();

  constructor() {
    element("remove").addEventListener("click", () => this.clear());
    element("download").addEventListener("click", () => this.#download());
  }

  get empty() { return this.#entries.length === 0; }

  clear() {
    this.#stop.abort();
    for (const { address } of this.#entries) URL.revokeObjectURL(address);
    this.#entries = [];
    element("rows").replaceChildren();
    element("gallery").hidden = true;
  }

  // Adds the files to the table and reads them, a few at a time.
  add(files, alphabet) {
    element("gallery").hidden = false;
    for (const file of files) this.#entries.push(this.#row(file));
    return this.read(alphabet);
  }

  // Reads every picture of the table; what is being read is given up.
  async read(alphabet) {
    this.#stop.abort();
    const stop = this.#stop = new AbortController();
    const waiting = this.#entries.filter((entry) => entry.alphabet !== alphabet || !entry.done);
    for (const entry of waiting) this.#show(entry, { alphabet, done: false, answer: null, error: "" });
    this.#progress();
    let refused = null; // without a key no picture is read, and nobody is asked for it again and again
    const next = async () => {
      for (let entry = waiting.shift(); entry && !stop.signal.aborted; entry = waiting.shift()) {
        const onWait = (text) => { element("progress").textContent = text; };
        let outcome = refused;
        try {
          outcome ??= { answer: await read(entry.file, { alphabet, signal: stop.signal, onWait }) };
        } catch (error) {
          outcome = { error: error.message, code: error.code };
          if (error.code === "unauthorized") refused = outcome;
        }
        if (stop.signal.aborted) return;
        this.#show(entry, { ...outcome, done: true });
        this.#progress();
      }
    };
    await Promise.all(Array.from({ length: AT_A_TIME }, next));
  }

  #row(file) {
    const row = element("rows").insertRow();
    const image = thumbnail(file);
    cell(row, "Picture").append(image);
    const name = cell(row, "File");
    name.textContent = file.name;
    name.className = "file";
    return { file, row, address: image.src, answerCell: cell(row, "Answer"), sureCell: cell(row, "Confidence"), seenCell: cell(row, "Seen") };
  }

  #show(entry, outcome) {
    Object.assign(entry, outcome);
    const { answer, error, answerCell, sureCell, seenCell } = entry;
    entry.row.className = error ? "failed" : "";
    answerCell.colSpan = error ? 3 : 1;
    sureCell.hidden = seenCell.hidden = Boolean(error);
    answerCell.className = answer ? "read" : "";
    answerCell.textContent = answer ? answer.character : error || "…";
    sureCell.textContent = answer ? `${percent(answer.confidence)} ${sureness(answer.confidence).toLowerCase()}` : "";
    seenCell.replaceChildren();
    if (!answer) return;
    const seen = document.createElement("canvas");
    seen.setAttribute("role", "img");
    seen.setAttribute("aria-label", `What the network saw of ${entry.file.name}`);
    paint(seen, answer.image);
    seenCell.append(seen);
  }

  #progress() {
    const done = this.#entries.filter((entry) => entry.done);
    const failed = done.filter((entry) => entry.error).length;
    const all = done.length === this.#entries.length;
    const faults = failed ? `, ${failed} could not be read` : "";
    element("progress").textContent = all ? `${done.length - failed} read${faults}.` : `${done.length} of ${this.#entries.length} done…`;
    element("download").disabled = !all;
  }

  #download() {
    const lines = [["file", "character", "ascii", "confidence", "status", "error"]];
    for (const { file, answer, code, error } of this.#entries) {
      lines.push(answer ? [file.name, answer.character, answer.ascii, answer.confidence.toFixed(4), "ok", ""] : [file.name, "", "", "", "error", code ?? error]);
    }
    const text = lines.map((line) => line.map(csvField).join(",")).join("\r\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" }));
    link.download = "characters.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}
