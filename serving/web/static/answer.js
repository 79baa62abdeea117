// The answer of one picture, in the panel and in words.

const element = (id) => document.getElementById(id);
const percentText = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const SURENESS = [[0.97, "Almost certain"], [0.85, "Quite sure"], [0.6, "Probably"], [0.35, "Not sure"], [0, "A guess"]];

export const percent = (confidence) => (confidence < 0.001 ? "< 0.1%" : percentText.format(confidence));
export const sureness = (confidence) => SURENESS.find(([least]) => confidence >= least)[1];

// The picture as the network gets it: square, light on black.
export function paint(canvas, pixels) {
  const side = canvas.width = canvas.height = Math.sqrt(pixels.length);
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  pixels.forEach((value, index) => image.data.set([value, value, value, 255], 4 * index));
  context.putImageData(image, 0, 0);
}

function rankingItem({ character, confidence }) {
  const item = document.createElement("li");
  const parts = ["name", "bar", "value"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  });
  parts[0].textContent = character;
  parts[1].setAttribute("aria-hidden", "true");
  const fill = document.createElement("span");
  fill.style.width = `${Math.max(100 * confidence, 0.5)}%`;
  parts[1].append(fill);
  parts[2].textContent = percent(confidence);
  item.append(...parts);
  return item;
}

export function showAnswer(answer) {
  const sure = sureness(answer.confidence);
  element("character").textContent = answer.character;
  element("sureness").textContent = sure;
  element("percent").textContent = percent(answer.confidence);
  element("ranking").replaceChildren(...[answer, ...answer.alternatives].map(rankingItem));
  paint(element("seen"), answer.image);
  element("time").textContent = `${answer.milliseconds.toFixed(answer.milliseconds < 10 ? 1 : 0)} ms`;
  element("model").textContent = answer.model_version;
  element("empty").hidden = true;
  element("result").hidden = false;
  element("result").classList.remove("stale");
  const others = answer.alternatives.filter(({ confidence }) => confidence >= 0.05).map(({ character }) => character);
  const rest = others.length ? ` It could also be ${others.join(" or ")}.` : "";
  element("spoken").textContent = `${answer.character}. ${sure}, ${percent(answer.confidence)}.${rest}`;
}

// The picture that a file holds, beside what the network saw; null for a drawing, which is in sight anyway.
export function showSource(file) {
  const image = element("source-image");
  if (image.src) URL.revokeObjectURL(image.src);
  element("source").hidden = !file;
  image.removeAttribute("src");
  if (!file) return;
  image.src = URL.createObjectURL(file);
  element("source-name").textContent = file.name;
  element("source-name").title = file.name;
}

export function clearAnswer() {
  element("result").hidden = true;
  element("empty").hidden = false;
  element("spoken").textContent = "";
  showSource(null);
}

// While the next answer is on its way, or did not come, the last one stands back.
export const standBack = () => element("result").classList.add("stale");

// A sentence above the answer; "" takes it away.
export function notice(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
  if (text) element("spoken").textContent = text;
}
