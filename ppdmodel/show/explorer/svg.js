/* Small drawing kit. All text goes in as text nodes, so that no name can be markup. */
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function node(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

function shown(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return "∞";
  if (Math.abs(value) >= 1e9) return value.toExponential(2);
  return value.toFixed(digits);
}

/* A share in percent: one digit more where it is small. */
function percent(share) {
  const value = 100 * Math.abs(share);
  return `${shown(value, value < 1 ? 2 : value < 10 ? 1 : 0)}%`;
}

/* About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * (1 - 1e-9));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(+(n * step).toPrecision(12));
  return found;
}

/* Some of 1, 2, 5, 10, ... within the range, for a logarithmic axis. */
function logTicks(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), found = [];
  const every = Math.ceil((last - first) / count);
  for (let power = first; power <= last; power += every) {
    for (const n of last - first <= 2 ? [1, 2, 5] : [1]) found.push(n * 10 ** power);
  }
  return found.filter((n) => n >= low * 0.999 && n <= high * 1.001);
}

function tick(value) {
  return value >= 1e5 ? value.toExponential(0).replace("e+", "e") : String(value);
}

let plots = 0;

/* Axes of a plot: an empty picture, a layer `inside` for what must not leave them, and where numbers
   go. */
function plot(box, { label, x, y, height = 300 }) {
  const width = Math.max(box.clientWidth, 260), left = 52, right = 12, top = 10, bottom = 40;
  const place = (v) => (x.log ? Math.log(v) : v);
  const [x0, x1, y0, y1] = [place(x.low), place(x.high), y.low, y.high];
  const at = {
    x: (v) => left + ((place(v) - x0) / (x1 - x0)) * (width - left - right),
    y: (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - top - bottom),
  };
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const count = Math.max(3, width / 90);
  for (const value of x.log ? logTicks(x.low, x.high, count) : ticks(x.low, x.high, count)) {
    const anchor = at.x(value) > width - right - 18 ? "end" : "middle";
    picture.append(svg("line", { class: "grid", x1: at.x(value), x2: at.x(value), y1: top, y2: height - bottom }));
    picture.append(svg("text", { x: at.x(value), y: height - bottom + 16, "text-anchor": anchor }, tick(value)));
  }
  for (const value of y.ticks === false ? [] : ticks(y.low, y.high, 5)) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: at.y(value), y2: at.y(value) }));
    picture.append(svg("text", { x: left - 6, y: at.y(value) + 4, "text-anchor": "end" }, tick(value)));
  }
  picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  picture.append(svg("text", { class: "soft", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.title));
  picture.append(
    svg("text", { class: "soft", transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.title),
  );
  const clip = `inside-${(plots += 1)}`, frame = { x: left - 4, y: top - 4, width: width - left - right + 8, height: height - top - bottom + 8 };
  const inside = svg("g", { "clip-path": `url(#${clip})` });
  picture.append(svg("clipPath", { id: clip }, svg("rect", frame)), inside);
  box.replaceChildren(picture);
  return { picture, inside, at, width, height, left, right, top, bottom };
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
}

/* A dot that leads to its setting when pressed, with a title for the pointer and room for a finger. */
function dot(at, x, y, attributes, words, press) {
  const found = svg("g", {}, svg("circle", { cx: at.x(x), cy: at.y(y), r: 3, ...attributes }), svg("title", {}, words));
  if (press) {
    found.append(svg("circle", { class: "finger", cx: at.x(x), cy: at.y(y), r: 7 }));
    found.classList.add("pressable");
    found.addEventListener("click", press);
  }
  return found;
}

/* A ring round the setting that the page is at. */
function ring(at, x, y) {
  return svg("circle", { class: "point", cx: at.x(x), cy: at.y(y), r: 9 }, svg("title", {}, "this setting"));
}

function star(x, y, size) {
  const points = Array.from({ length: 10 }, (_, i) => {
    const angle = (Math.PI * i) / 5 - Math.PI / 2, radius = i % 2 ? size * 0.45 : size;
    return `${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`;
  });
  return svg("polygon", { class: "star", points: points.join(" ") }, svg("title", {}, "the best within the budget"));
}
