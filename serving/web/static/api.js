// The API: one picture in, one answer out, errors in words, and waiting for a service that is away.

const KEY = "emnist-api-key"; // of sessionStorage
const TIMEOUT_MS = 60_000; // above all of the service's own deadlines together
const MAX_BYTES = 16 * 1024 * 1024;
const BUSY_TRIES = 4;
const WAITS_MS = [1000, 1500, 2000, 3000]; // between two looks whether the service is back; the last one repeats

export const WORDS = {
  blank_image: "There is nothing to read on it yet.",
  invalid_image: "This file is damaged; it cannot be opened as a picture.",
  unsupported_format: "This file is not a picture that can be read here. PNG, JPEG, GIF, BMP, TIFF and WebP can.",
  image_too_large: "This picture is too large. At most 16 MB and 64 million pixels can be read.",
  unknown_alphabet: "The service does not know these characters. Choose others under “It is one of”.",
  unauthorized: "This service needs a key. Press Predict to enter it.",
  overloaded: "The service is very busy. Please try again in a moment.",
  deadline: "Reading took too long. Please try again.",
  unreachable: "The service cannot be reached; trying again…",
};
const OTHERWISE = "Something went wrong in the service. Please try again.";

export class ReadError extends Error {
  constructor(code, retryAfterS = 1) {
    super(WORDS[code] ?? OTHERWISE);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const stop = () => { clearTimeout(timer); reject(signal.reason); };
  const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, ms);
  signal?.addEventListener("abort", stop, { once: true });
});

// The code of an answer that is not ours, but of a proxy before us, or of none at all.
function withoutWords(response) {
  if (response?.status === 413) return "image_too_large";
  return response && response.status < 500 ? "unexpected" : "unreachable";
}

async function once(picture, alphabet, topK, signal) {
  if (picture.size > MAX_BYTES) throw new ReadError("image_too_large");
  const headers = { "Content-Type": "application/octet-stream" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-API-Key"] = key;
  const stop = new AbortController();
  const giveUp = () => stop.abort();
  const timer = setTimeout(giveUp, TIMEOUT_MS);
  signal?.addEventListener("abort", giveUp, { once: true });
  let response, body;
  try {
    response = await fetch(`api/predict?alphabet=${alphabet}&top_k=${topK}`, { method: "POST", body: picture, headers, signal: stop.signal });
    body = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ReadError(stop.signal.aborted ? "deadline" : withoutWords(response));
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  }
  if (response.ok) return body;
  throw new ReadError(body.error?.code, Number(response.headers.get("Retry-After")) || 1);
}

let asking = null; // one dialog for all requests that were refused meanwhile

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key");
    if (sessionStorage.getItem(KEY)) document.getElementById("key-text").textContent = "That key is not valid. Please check it and try again.";
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "ok") sessionStorage.setItem(KEY, input.value.trim());
      resolve(dialog.returnValue === "ok");
      asking = null;
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function ready(signal) {
  try {
    return (await fetch("ready", { signal, cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

async function untilBack(signal) {
  for (let turn = 0; ; turn++) {
    await pause(WAITS_MS[Math.min(turn, WAITS_MS.length - 1)], signal);
    if (await ready(signal)) return;
  }
}

// Reads one picture. What passes by itself is waited for, and `onWait` told of it in words; everything else is thrown as ReadError.
export async function read(picture, { alphabet, topK = 5, signal, onWait = () => {} }) {
  for (let busy = 1; ; ) {
    const keyUsed = sessionStorage.getItem(KEY);
    try {
      return await once(picture, alphabet, topK, signal);
    } catch (error) {
      const away = error.code === "unreachable" || (error.code === "overloaded" && !(await ready(signal)));
      if (away) {
        onWait(WORDS.unreachable);
        await untilBack(signal);
      } else if (error.code === "overloaded" && busy < BUSY_TRIES) {
        onWait("The service is busy; trying again…");
        await pause(error.retryAfterS * 1000 * busy++, signal);
      } else if (error.code !== "unauthorized" || (keyUsed === sessionStorage.getItem(KEY) && !(await askForKey()))) {
        throw error;
      }
    }
  }
}
