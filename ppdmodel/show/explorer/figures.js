/* The pictures. Each takes its box, the setting and what it needs; the caller gives `go`, which
   changes the setting. */
function drawTimeline(box, s, run, time) {
  const width = Math.max(box.clientWidth, 260), left = 8, right = 8, bar = 17, thin = 8, gap = 5;
  const tokens = s.pattern.length + 1, whole = tokens * s.layers;
  const x = (t) => left + (t / whole) * (width - left - right);
  const lanes = placed(run.processes, (36 * whole) / (width - left - right));
  const picture = svg("svg", { role: "img" });
  let y = 16;
  picture.append(svg("text", { class: "soft", x: left, y: y - 4 }, "plain decoding: one token after another"));
  for (let i = 0; i < tokens; i += 1) {
    picture.append(svg("rect", { class: "plain", x: x(i * s.layers), y, width: x(s.layers) - x(0), height: bar }));
    picture.append(svg("text", { class: "soft", x: (x(i * s.layers) + x((i + 1) * s.layers)) / 2, y: y + 13, "text-anchor": "middle" }, String(i + 1)));
  }
  y += bar + 24;
  picture.append(svg("text", { class: "soft", x: left, y: y - 6 }, "PPD: a line per process; the token's number on it"));
  for (let token = 0; token < tokens; token += 1) {
    const right = lanes.find((one) => one.token === token && one.generation === 0);
    drawTrue(picture, x, y, bar, s, right, token ? run.finishes[token - 1] : 0);
    const wrong = lanes.filter((one) => one.token === token && one.generation > 0);
    for (const one of wrong) drawWrong(picture, x, y + bar + 2 + one.lane * (thin + 2), thin, one);
    const deep = wrong.length ? 1 + Math.max(...wrong.map((one) => one.lane)) : 0;
    y += bar + gap + deep * (thin + 2);
  }
  for (const value of ticks(0, whole, Math.max(3, width / 90))) {
    picture.append(svg("text", { class: "soft", x: x(value), y: y + 14, "text-anchor": "middle" }, String(value)));
  }
  picture.append(svg("text", { class: "soft", x: width - right, y: y + 30, "text-anchor": "end" }, "layer times"));
  picture.append(svg("line", { class: "cursor", x1: x(time), x2: x(time), y1: 18, y2: y }));
  const end = run.finishes[tokens - 1];
  picture.setAttribute("viewBox", `0 0 ${width} ${y + 34}`);
  picture.setAttribute("aria-label", `${tokens} tokens take ${shown(end, 0)} layer times with PPD and ${whole} without; ${legend()}`);
  box.replaceChildren(picture);
  const more = s.overhead ? " The overhead is not drawn." : "";
  box.append(node("p", { class: "hint" }, `${tokens} tokens: ${shown(end, 0)} layer times with PPD, ${whole} without. ${legend()}${more}`));
}

function legend() {
  return "Blue: known to be right. Pale: a guess that turned out right, before that is known. Orange: wrong guesses, dropped. ×3: three of them. Gap in a bar: the exit is read.";
}

/* Wrong groups of one token in lanes of their own where they, or their labels of some width, overlap. */
function placed(processes, label) {
  const ends = new Map();
  return [...processes].sort((a, b) => a.started - b.started).map((one) => {
    if (one.generation === 0) return one;
    const lanes = ends.get(one.token) ?? [];
    let lane = lanes.findIndex((end) => end <= one.started);
    if (lane < 0) lane = lanes.length;
    lanes[lane] = one.ended + label;
    ends.set(one.token, lanes);
    return { ...one, lane };
  });
}

function drawTrue(picture, x, y, height, s, one, known) {
  const from = Math.max(known, one.started), read = one.started + s.exit;
  const words = `token ${one.token + 1}: from ${one.started} to ${one.ended}`;
  if (from > one.started) {
    picture.append(svg("rect", { class: "ahead", x: x(one.started), y, width: x(from) - x(one.started), height }, svg("title", {}, `${words}, ${from - one.started} ahead`)));
  }
  picture.append(svg("rect", { class: "process", x: x(from), y, width: x(one.ended) - x(from), height }, svg("title", {}, words)));
  if (read < one.ended) picture.append(svg("line", { class: "exit", x1: x(read), x2: x(read), y1: y, y2: y + height }));
  const tone = x(one.ended) - x(from) < 18 ? "on-pale" : "on-bar";
  picture.append(svg("text", { class: tone, x: x(one.ended) - 5, y: y + 13, "text-anchor": "end" }, String(one.token + 1)));
}

function drawWrong(picture, x, y, height, one) {
  const words = `${one.count} wrong for token ${one.token + 1}, dropped at ${one.ended}`;
  picture.append(svg("rect", { class: "wrong", x: x(one.started), y, width: Math.max(x(one.ended) - x(one.started), 0.5), height }, svg("title", {}, words)));
  picture.append(svg("text", { class: "soft", x: x(one.ended) + 4, y: y + height }, `×${one.count < 1e4 ? one.count : one.count.toExponential(0).replace("e+", "e")}`));
}

/* What every process does at one time, in words; wrong ones of one token in one layer together. */
function doing(s, run, time) {
  const last = run.finishes[run.finishes.length - 1];
  if (time >= last) return [`all ${run.finishes.length} tokens are made, after ${shown(last, 0)} layer times`];
  const there = run.processes.filter((one) => one.started <= time && time < one.ended);
  const layerOf = (one) => Math.min(Math.floor(time - one.started) + 1, s.layers), words = new Map();
  for (const one of there.sort((a, b) => a.token - b.token || a.generation - b.generation)) {
    const layer = layerOf(one), known = one.token === 0 || run.finishes[one.token - 1] <= time;
    if (one.generation > 0) {
      const key = `layer ${layer} for token ${one.token + 1}`;
      words.set(key, (words.get(key) ?? 0) + one.count);
    } else if (known) words.set(`token ${one.token + 1} runs layer ${layer} of ${s.layers}`, 0);
    else words.set(`the right guess for token ${one.token + 1} runs layer ${layer}, not yet known to be right`, 0);
  }
  return [...words].map(([what, count]) => {
    if (count === 0) return what;
    return count === 1 ? `1 wrong process runs ${what}` : `${count} wrong processes run ${what}`;
  });
}

/* Exit layers along a curve: all, or a hundred of many. */
function along(s) {
  const step = Math.max(1, s.layers / 100), found = [];
  for (let exit = 1; exit < s.layers; exit += step) found.push(Math.round(exit));
  return [...found, s.layers];
}

/* Points of a curve along the exit layer at one match rate, kept while its numbers stay. */
const curves = new Map();
function curveOf(s, p) {
  const key = [p, s.layers, s.k, s.depth, s.overhead].join();
  if (curves.size > 60) curves.clear();
  if (!curves.has(key)) {
    const all = along(s).map((exit) => ({ exit, ...quantities({ ...s, exit }, p) }));
    curves.set(key, all.filter((one) => Number.isFinite(one.normalized_compute)));
  }
  return curves.get(key);
}

/* Beyond so much compute nothing is drawn. */
const MOST_COMPUTE = 1e6;

function drawTrade(box, s, numbers, spread, measured, best, go) {
  const curve = measured.length ? [] : curveOf(s, s.p);
  const here = [numbers.normalized_compute, numbers.normalized_latency];
  const points = measured.length ? measured.map((one) => [one.compute, one.latency]) : curve.map((one) => [one.normalized_compute, one.normalized_latency]);
  const latencies = [here[1], 1, ...points.map((one) => one[1])];
  const widest = measured.length ? Math.max(2 * s.budget, 4) : Math.max(...points.map((one) => one[0]), 1.2);
  const most = Math.min(Math.max(widest, Number.isFinite(here[0]) ? here[0] : 0), MOST_COMPUTE), log = most > 8;
  const lowest = Math.floor(10 * Math.min(...latencies) - 0.5) / 10;
  const { picture, inside, at, right, width, top, bottom, height } = plot(box, {
    label: `Latency ${shown(here[1], 3)} and compute ${shown(here[0], 3)} of plain decoding, among other exit layers`,
    x: { low: log ? 0.9 : 0.95, high: most * (log ? 1.2 : 1.05), log, title: "compute per token, × plain decoding" },
    y: { low: Math.max(lowest, 0), high: Math.max(...latencies) * 1.05, title: "latency per token, × plain decoding" },
  });
  const edge = at.x(s.budget);
  if (measured.length && edge < width - right) picture.append(svg("rect", { class: "over", x: edge, y: top, width: width - right - edge, height: height - top - bottom }));
  for (const one of measured) {
    const words = `exit ${one.exit}, k = ${one.k}: latency ${shown(one.latency, 3)}, compute ${shown(one.compute, 2)}`;
    if (one.compute <= most * 1.2) inside.append(dot(at, one.compute, one.latency, { class: "dot", r: 2.2 }, words, () => go({ exit: one.exit, k: one.k, measured: true })));
  }
  if (measured.length) inside.append(svg("path", { class: "frontier", d: path(frontier(measured).map((one) => [at.x(one.compute), at.y(one.latency)])) }));
  else drawCurves(inside, at, s, curve, go);
  inside.append(svg("rect", { class: "square", x: at.x(1) - 4, y: at.y(1) - 4, width: 8, height: 8 }, svg("title", {}, "plain decoding")));
  if (spread?.normalized_latency && spread.normalized_compute) {
    const [a, b] = spread.normalized_latency, [c, d] = spread.normalized_compute;
    inside.append(svg("line", { class: "whisker", x1: at.x(here[0]), x2: at.x(here[0]), y1: at.y(a), y2: at.y(b) }));
    inside.append(svg("line", { class: "whisker", x1: at.x(c), x2: at.x(d), y1: at.y(here[1]), y2: at.y(here[1]) }));
  }
  if (Number.isFinite(here[0])) inside.append(ring(at, ...here));
  if (best) inside.append(star(at.x(best.compute), at.y(best.latency), 7));
}

/* Without measurements: along the exit layer, at this match rate and at others. */
function drawCurves(inside, at, s, curve, go) {
  const placed = (points) => path(points.map((q) => [at.x(q.normalized_compute), at.y(q.normalized_latency)]));
  for (const p of [0.3, 0.5, 0.7, 0.9]) {
    inside.append(svg("path", { class: "curve", d: placed(curveOf(s, p)) }, svg("title", {}, `p_correct = ${p}`)));
  }
  inside.append(svg("path", { class: "now", d: placed(curve) }));
  for (const q of curve) {
    inside.append(dot(at, q.normalized_compute, q.normalized_latency, { class: "dot here", r: 2.6 }, `exit ${q.exit}`, () => go({ exit: q.exit })));
  }
}

function drawTotal(box, s, total) {
  const shift = s.overhead * s.tokens, marks = { p50: total.quantile(0.5), p95: total.quantile(0.95), p99: total.quantile(0.99) };
  const likely = total.times.filter((_, i) => total.probabilities[i] > 1e-7);
  const low = likely[0] + shift, high = likely[likely.length - 1] + shift;
  const step = likely.slice(1).reduce((least, time, i) => Math.min(least, time - likely[i]), high - low || s.layers);
  const bins = new Map(), size = step * Math.max(1, Math.ceil((high - low) / 90 / step)); // a whole number of steps
  total.times.forEach((time, i) => {
    const bin = Math.round((time + shift - low) / size);
    bins.set(bin, (bins.get(bin) ?? 0) + total.probabilities[i]);
  });
  const tallest = Math.max(...bins.values());
  const { picture, inside, at, height, bottom, top } = plot(box, {
    label: `Total latency of ${s.tokens} tokens: mean ${shown(total.mean + shift, 0)}, 95% within ${shown(marks.p95 + shift, 0)} layer times`,
    x: { low: low - 2 * size, high: high + 2 * size, title: `layer times for ${s.tokens} token${s.tokens === 1 ? "" : "s"}` },
    y: { low: 0, high: tallest * 1.12, title: "probability", ticks: false },
  });
  const wide = Math.max(at.x(low + size) - at.x(low) - 0.6, 1);
  for (const [bin, chance] of bins) {
    const middle = at.x(low + bin * size);
    inside.append(svg("rect", { class: "bar", x: middle - wide / 2, y: at.y(chance), width: wide, height: at.y(0) - at.y(chance) }, svg("title", {}, `${shown(low + bin * size, 0)}: ${(100 * chance).toPrecision(2)}%`)));
  }
  Object.entries(marks).forEach(([name, value], i) => {
    const where = at.x(value + shift), y = top + 14 * i;
    picture.append(svg("line", { class: "quantile", x1: where, x2: where, y1: y, y2: height - bottom }));
    picture.append(svg("text", { class: "halo", x: where + 3, y: y + 10 }, name));
  });
}

function drawRates(box, s, result, best, go) {
  const { inside, at } = plot(box, {
    label: `Measured match rate by exit layer for k = ${s.k}`,
    x: { low: 0, high: result.layers + 0.5, title: `exit layer (k = ${s.k})` },
    y: { low: 0, high: 1, title: "match rate p_correct" },
  });
  const rows = [];
  for (let exit = 1; exit <= result.layers; exit += 1) {
    const rate = measuredRate(result, exit, s.k);
    if (rate) rows.push({ exit, ...rate });
  }
  const banded = rows.filter((row) => row.low !== null);
  if (banded.length) {
    const edge = [...banded.map((r) => [at.x(r.exit), at.y(r.high)]), ...[...banded].reverse().map((r) => [at.x(r.exit), at.y(r.low)])];
    inside.append(svg("path", { class: "band", d: `${path(edge)}Z` }));
  }
  for (const row of rows) {
    const interval = row.low === null ? "" : ` [${shown(row.low, 3)}, ${shown(row.high, 3)}]`;
    inside.append(dot(at, row.exit, row.value, { class: "dot here", r: 3.4 }, `exit ${row.exit}: ${shown(row.value, 3)}${interval}`, () => go({ exit: row.exit, measured: true })));
  }
  const here = measuredRate(result, s.exit, s.k);
  if (here) inside.append(ring(at, s.exit, here.value));
  if (best && best.k === s.k) inside.append(star(at.x(best.exit), at.y(best.p), 7));
}
