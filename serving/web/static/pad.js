// The drawing: strokes in units of the pad's side, so that what is sent depends neither on the screen nor on the window.

const PEN = 0.062; // of the pad's side: about the stroke that the network was trained on, for a character that fills the pad
const SENT_PIXELS = 420;
const INK = "#16181d";

export class Pad extends EventTarget {
  #canvas; #strokes = []; #current = null; #pointer = null; #frame = 0;

  // Events: "start" when a stroke begins, "change" when the drawing has changed.
  constructor(canvas) {
    super();
    this.#canvas = canvas;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(name, (event) => this.#up(event));
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  get empty() { return this.#strokes.length === 0; }

  get drawing() { return this.#current !== null; }

  undo() {
    if (this.#strokes.pop()) this.#changed();
  }

  clear() {
    this.#strokes = [];
    this.#changed();
  }

  // A PNG of the drawing, dark ink on white.
  png() {
    const sheet = document.createElement("canvas");
    sheet.width = sheet.height = SENT_PIXELS;
    const context = sheet.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SENT_PIXELS, SENT_PIXELS);
    this.#draw(context, SENT_PIXELS);
    return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
  }

  #down(event) {
    if (this.#pointer !== null || event.button !== 0) return;
    event.preventDefault();
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#current = [this.#point(event)];
    this.#strokes.push(this.#current);
    this.dispatchEvent(new Event("start"));
    this.#redraw();
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.#current.push(...(events.length ? events : [event]).map((one) => this.#point(one)));
    this.#redraw();
  }

  #up(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    this.#current = null;
    this.#changed();
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const pressure = event.pointerType === "pen" && event.pressure > 0 ? 0.6 + 0.8 * event.pressure : 1;
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height, width: PEN * pressure };
  }

  #changed() {
    this.#redraw();
    this.dispatchEvent(new Event("change"));
  }

  #fit() {
    const side = Math.round(this.#canvas.clientWidth * (window.devicePixelRatio || 1));
    if (side && side !== this.#canvas.width) this.#canvas.width = this.#canvas.height = side;
    this.#redraw();
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const context = this.#canvas.getContext("2d");
      context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
      this.#draw(context, this.#canvas.width);
    });
  }

  // Each point bends the line between the middles to its neighbours, which makes corners of a slow mouse round. A stroke of one
  // width is one path: where pieces meet, their edges would show.
  #draw(context, side) {
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = INK;
    const middle = (a, b) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    for (const stroke of this.#strokes) {
      const even = stroke.every((point) => point.width === stroke[0].width);
      stroke.forEach((point, index) => {
        const from = index === 0 ? point : middle(stroke[index - 1], point);
        const to = index + 1 === stroke.length ? point : middle(point, stroke[index + 1]);
        if (index === 0 || !even) {
          context.beginPath();
          context.moveTo(from.x * side, from.y * side);
          context.lineWidth = point.width * side;
        }
        context.quadraticCurveTo(point.x * side, point.y * side, to.x * side, to.y * side);
        if (index + 1 === stroke.length || !even) context.stroke();
      });
    }
  }
}
