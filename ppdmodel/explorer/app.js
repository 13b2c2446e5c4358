/* The state, the controls that change it, the address that keeps it, and the drawing of it all. */
const RESULTS = JSON.parse(document.getElementById("results").textContent);
const $ = (id) => document.getElementById(id);
const SHOWN_TOKENS = 8;
const LIMITS = { p: [0, 1], layers: [1, 1000], exit: [1, 1000], k: [1, 1000], tokens: [1, 2000], overhead: [0, 1000], budget: [1, 1000], ms: [0, 1e9], seed: [0, 1e9], flips: [0, 2 ** SHOWN_TOKENS], time: [0, 1e6] };
const WHOLE = ["layers", "exit", "k", "tokens", "seed", "flips"];
const SLIDERS = ["p", "layers", "exit", "k", "tokens", "overhead", "budget"];
const IN_ADDRESS = { r: "result", m: "measured", p: "p", d: "layers", e: "exit", k: "k", D: "depth", n: "tokens", o: "overhead", ms: "ms", b: "budget", s: "seed", f: "flips", t: "time" };

let state = opening();

function opening(result = RESULTS.length ? 0 : null) {
  const first = { result: null, measured: false, p: 0.7, layers: 40, exit: 20, k: 3, depth: 1, tokens: 256, overhead: 0, ms: 0, budget: 2, seed: 3, flips: 0, time: 30 };
  first.costs = Object.fromEntries(Object.entries(COSTS).map(([name, [, nothing]]) => [name, nothing]));
  return result === null ? first : withResult(first, result);
}

function withResult(s, result) {
  const source = RESULTS[result], layers = source.layers;
  const start = { ...s, result, measured: true, layers, exit: Math.ceil(layers / 2), k: 1, time: Math.round(layers * 0.8) };
  const best = bestWithin(measuredSettings(source, s.depth, s.overhead), s.budget);
  return best ? { ...start, exit: best.exit, k: best.k } : start;
}

/* A state whose numbers are within their limits, whatever was typed or stands in the address. */
function clean(s) {
  const found = { ...s };
  for (const [name, [low, high]] of Object.entries(LIMITS)) {
    const value = Number(found[name]);
    found[name] = Number.isFinite(value) ? Math.min(Math.max(value, low), high) : state[name];
    if (WHOLE.includes(name)) found[name] = Math.round(found[name]);
  }
  const source = RESULTS[found.result];
  if (!source) Object.assign(found, { result: null, measured: false });
  else found.layers = source.layers;
  found.exit = Math.min(found.exit, found.layers);
  if (!DEPTHS.includes(found.depth)) found.depth = 1;
  const rate = found.measured ? measuredRate(source, found.exit, found.k) : null;
  if (rate) found.p = rate.value;
  else found.measured = false;
  return found;
}

function toAddress(s) {
  const parts = Object.entries(IN_ADDRESS).map(([key, name]) => [key, name === "depth" ? s.depth ?? "inf" : name === "result" ? s.result ?? "" : Number(s[name])]);
  const costs = Object.keys(COSTS).map((name) => s.costs[name]);
  return `#${new URLSearchParams([...parts, ["c", costs.join("_")]])}`;
}

function fromAddress(text) {
  const given = new URLSearchParams(text.replace(/^#/, "")), result = given.get("r");
  if (![...given].length) return state;
  const found = { ...opening(result && RESULTS[result] ? Number(result) : null) };
  for (const [key, name] of Object.entries(IN_ADDRESS)) {
    if (given.has(key) && name !== "result" && name !== "depth") found[name] = Number(given.get(key));
  }
  if (given.has("D")) found.depth = given.get("D") === "inf" ? null : Number(given.get("D"));
  found.measured = given.get("m") === "1";
  found.costs = { ...found.costs };
  Object.keys(COSTS).forEach((name, i) => {
    const cost = Number(given.get("c")?.split("_")[i] ?? NaN);
    if (cost >= 0 && cost <= 1e6) found.costs[name] = cost;
  });
  return clean(found);
}

let waiting = false;
function go(change) {
  state = clean({ ...state, ...change });
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

/* Uniform numbers of a seed: a token matches where its own is below the match rate, or is flipped. */
function pattern(s) {
  let seed = s.seed;
  return Array.from({ length: SHOWN_TOKENS - 1 }, (_, i) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    const drawn = ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    return drawn < s.p !== Boolean((s.flips >> i) & 1);
  });
}

function render() {
  const s = { ...state, pattern: pattern(state) };
  const source = RESULTS[s.result], numbers = quantities(s);
  const rate = s.measured ? measuredRate(source, s.exit, s.k) : null;
  const spread = rate && rate.low !== null ? ranges(s, rate.low, rate.high) : null;
  const settings = source ? measuredSettings(source, s.depth, s.overhead) : [];
  const best = bestWithin(settings, s.budget);
  history.replaceState(null, "", toAddress(s));
  renderControls(s, source, best);
  $("verdict").textContent = verdict(s, numbers, spread);
  $("best").textContent = bestWords(s, source, best);
  renderCards(numbers, spread);
  renderTimeline(s);
  renderNumbers(s, source, numbers, spread);
  drawTrade($("trade"), s, numbers, spread, settings, best, go);
  $("trade-hint").textContent = source
    ? "A dot per measured exit layer and k; the green line is the frontier, the star the best within the budget. Press a dot to go to it."
    : "Along the exit layer at this match rate; thin lines are match rates of .3, .5, .7 and .9. On a real model the rate grows with the exit layer.";
  $("rates-box").hidden = !source;
  if (source) drawRates($("rates"), s, source, best, go);
}

function verdict(s, numbers, spread) {
  const saved = 1 - numbers.normalized_latency, extra = `${shown(100 * (numbers.normalized_compute - 1), 0)}% more compute`;
  if (saved < -1e-12) return `At p = ${shown(s.p, 3)}, PPD costs ${shown(-100 * saved, 0)}% more time per token and does not pay.`;
  if (saved <= 1e-12) return `At p = ${shown(s.p, 3)}, PPD saves no time and costs ${extra}.`;
  const [low, high] = (spread?.normalized_latency ?? []).map((x) => shown(100 * (1 - x), 0)).reverse();
  const sure = spread ? ` (95% interval: ${low}% to ${high}%)` : "";
  return `At p = ${shown(s.p, 3)}, PPD takes ${shown(100 * saved, 0)}% off the latency${sure} for ${extra}.`;
}

function renderCards(numbers, spread) {
  const cards = { "latency, × plain": "normalized_latency", "speed-up": "speedup", "compute, × plain": "normalized_compute", "processes, peak": "peak_units" };
  $("cards").replaceChildren(...Object.entries(cards).map(([words, name]) => {
    const digits = name === "peak_units" ? 0 : name === "normalized_latency" ? 3 : 2;
    const ends = spread && digits ? `[${spread[name].map((x) => shown(x, digits)).join(", ")}]` : "";
    return node("div", {}, node("dt", {}, words), node("dd", {}, shown(numbers[name], digits), node("small", {}, ends)));
  }));
}

function bestWords(s, source, best) {
  if (!source) return "";
  const depth = s.depth === null ? "unlimited depth" : `depth ${s.depth}`;
  if (!best) return `Within ${s.budget}× compute nothing measured is faster than plain decoding at ${depth}.`;
  return `Best within ${s.budget}× compute at ${depth}: exit layer ${best.exit}, k = ${best.k}, ${shown(best.latency, 3)} of plain decoding's latency (the star). The best of many looks better than it is; ppdmodel optimize judges it on other prompts.`;
}

function renderTimeline(s) {
  const run = runSchedule(s.pattern, s.layers, s.exit, s.k, s.depth), end = run.finishes[run.finishes.length - 1];
  const time = Math.min(s.time, end);
  drawTimeline($("timeline"), s, run, time);
  $("time").max = end;
  $("time").value = time;
  $("time-shown").textContent = shown(time, 0);
  $("now").replaceChildren(...doing(s, run, time).map((words) => node("li", {}, words)));
  const buttons = s.pattern.map((hit, i) => {
    const found = node("button", { type: "button", "aria-pressed": hit, id: `hit-${i}` }, `token ${i + 2}: ${hit ? "match" : "miss"}`);
    found.addEventListener("click", () => go({ flips: state.flips ^ (1 << i) }));
    return found;
  });
  const again = node("button", { type: "button", id: "again" }, "New matches");
  again.addEventListener("click", () => go({ seed: state.seed + 1, flips: 0 }));
  const focused = document.activeElement?.id;
  $("hits").replaceChildren(...buttons, again);
  if (focused && $("hits").contains($(focused))) $(focused).focus();
}

function renderNumbers(s, source, numbers, spread) {
  const total = totalLatency(s.p, s.layers, s.exit, s.tokens, s.depth), paid = s.overhead * s.tokens;
  drawTotal($("total"), s, total);
  $("total-hint").textContent = `Plain decoding takes ${shown(s.tokens * s.layers, 0)} layer times. Exact, for matches that are independent of each other.`;
  const rows = [
    ["Match rate p_correct", numbers.p_correct, "p_correct", 3, ""],
    ["Latency per token", numbers.latency_per_token, "latency_per_token", 2, "layer times"],
    ["against plain decoding", numbers.normalized_latency, "normalized_latency", 3, "×"],
    ["Speed-up", numbers.speedup, "speedup", 2, "×"],
    ["Compute per token", numbers.compute_per_token, "compute_per_token", 2, "layers"],
    ["against plain decoding", numbers.normalized_compute, "normalized_compute", 3, "×"],
    ["Extra compute per layer time saved", numbers.exchange_rate, "exchange_rate", 2, "layers"],
    ["Processes, mean", numbers.mean_units, "mean_units", 2, ""],
    ["Processes, peak", numbers.peak_units, null, 0, ""],
    ["Reserved per token (peak)", numbers.reserved_units, "reserved_units", 2, "layers"],
    ["Match rate to break even", neededRate(s, 1), null, 3, ""],
    [`${s.tokens} tokens, mean`, total.mean + paid, "expected_total_latency", 1, "layer times"],
    [`${s.tokens} tokens, standard deviation`, total.std, null, 1, "layer times"],
    ...[50, 95, 99].map((n) => [`${s.tokens} tokens, p${n}`, total.quantile(n / 100) + paid, null, 1, "layer times"]),
  ];
  if (Object.entries(COSTS).some(([name, [, nothing]]) => s.costs[name] !== nothing)) rows.push(...costRows(s));
  const cell = (words) => node("td", { class: "number" }, words);
  $("numbers").replaceChildren(...rows.map(([name, value, key, digits, unit]) => {
    const ends = spread && key && name !== "" ? spread[key] : null;
    const interval = ends && ends.every(Number.isFinite) ? `[${shown(ends[0], digits)}, ${shown(ends[1], digits)}]` : "";
    const seconds = s.ms && unit === "layer times" ? `${shown(value * s.ms, 1)} ms` : "";
    return node("tr", {}, node("th", { scope: "row" }, name), cell(shown(value, digits)), cell(interval), node("td", {}, unit), cell(seconds));
  }));
  $("source").textContent = source ? `${source.title}: ${source.tokens} tokens of ${source.prompts} prompts. ${source.note}` : "No measurement: the match rate is what you make it.";
}

function costRows(s) {
  if (s.depth !== 1 || s.exit < (s.layers + s.costs.head_time) / 2) {
    return [["With the costs: needs depth 1 and a later exit", null, null, 2, ""]];
  }
  const found = withCosts(s);
  return [
    ["With the costs: latency against plain decoding", found.normalized_latency, null, 3, "×"],
    ["With the costs: speed-up", found.speedup, null, 2, "×"],
    ["With the costs: compute against plain decoding", found.normalized_compute, null, 3, "×"],
    ["With the costs: match rate to break even", found.break_even, null, 3, ""],
  ];
}

function renderControls(s, source, best) {
  $("exit-range").max = s.layers;
  $("layers").disabled = $("layers-range").disabled = Boolean(source);
  $("measured").checked = s.measured;
  $("measured").disabled = !source || !measuredRate(source, s.exit, s.k);
  $("to-best").disabled = !best;
  for (const name of SLIDERS) {
    $(`${name}-range`).value = s[name];
    show(name, name === "p" ? +s.p.toFixed(6) : s[name]);
  }
  show("ms", s.ms || "");
  $("depth").value = s.depth ?? "inf";
  $("result").value = s.result ?? "";
  for (const name of Object.keys(COSTS)) show(name, s.costs[name]);
}

/* What is being typed stays as it is. */
function show(id, value) {
  if (document.activeElement !== $(id)) $(id).value = value;
}

function asCommand(s) {
  const depth = s.depth ?? "inf", overhead = s.overhead ? ` --overhead ${s.overhead}` : "";
  const time = s.ms ? ` --layer-time-s ${s.ms / 1000}` : "";
  return `ppdmodel estimate --p-correct ${s.p} --layers ${s.layers} --exit-layer ${s.exit} --k ${s.k} --depth ${depth} --tokens ${s.tokens}${overhead}${time}`;
}

function asPython(s) {
  return [
    "import ppdmodel as ppd",
    "",
    `setting = dict(p_correct=${s.p}, layers=${s.layers}, exit_layer=${s.exit}, depth=${s.depth ?? "None"})`,
    `print(ppd.latency_per_token(**setting)${s.overhead ? ` + ${s.overhead}` : ""})  # layer times`,
    `print(ppd.compute_per_token(**setting, k=${s.k}))  # layer executions`,
    `print(ppd.total_latency(**setting, tokens=${s.tokens}).quantile(0.95)${s.overhead ? ` + ${s.overhead * s.tokens}` : ""})`,
    "",
  ].join("\n");
}

/* A row per exit layer at this match rate, or per measured exit layer and k. */
function asCsv(s) {
  const names = Object.keys(quantities(s)).filter((name) => name !== "p_correct"), rows = [];
  const add = (exit, k, rate) => {
    const found = quantities({ ...s, exit, k }, rate.value);
    rows.push([exit, k, s.depth ?? "inf", rate.value, rate.low ?? "", rate.high ?? "", ...names.map((name) => found[name] ?? "")].join(","));
  };
  const source = RESULTS[s.result];
  if (source) for (const one of measuredSettings(source, s.depth, s.overhead)) add(one.exit, one.k, measuredRate(source, one.exit, one.k));
  else for (let exit = 1; exit <= s.layers; exit += 1) add(exit, s.k, { value: s.p });
  return `exit_layer,k,depth,p_correct,p_low,p_high,${names.join(",")}\n${rows.join("\n")}\n`;
}

async function copy(text, words) {
  $("copied").value = text;
  try {
    await navigator.clipboard.writeText(text);
    $("copy-status").textContent = `Copied as ${words}`;
  } catch {
    $("copied").select();
    $("copy-status").textContent = `Here as ${words}: press Ctrl-C to copy`;
  }
}

let playing = null;
function play() {
  const stop = () => {
    cancelAnimationFrame(playing);
    playing = null;
    $("play").textContent = "Play";
  };
  if (playing !== null) return stop();
  $("play").textContent = "Pause";
  const from = Number($("time").value) >= Number($("time").max) ? 0 : Number($("time").value);
  let began = null;
  const step = (now) => {
    began ??= now;
    const end = Number($("time").max), time = Math.min(from + ((now - began) / 12000) * end, end);
    state = clean({ ...state, time });
    renderTimeline({ ...state, pattern: pattern(state) });
    if (time >= end) return stop();
    playing = requestAnimationFrame(step);
    return undefined;
  };
  playing = requestAnimationFrame(step);
  return undefined;
}

function listen() {
  for (const name of SLIDERS) {
    const taken = (event) => {
      const value = event.target.value;
      if (value !== "" && event.target.validity.valid) go({ [name]: Number(value), ...(name === "p" ? { measured: false } : {}) });
    };
    for (const id of [name, `${name}-range`]) $(id).addEventListener("input", taken);
    $(name).addEventListener("change", (event) => { event.target.value = state[name]; });
  }
  $("ms").addEventListener("input", (event) => event.target.validity.valid && go({ ms: Number(event.target.value) }));
  $("depth").addEventListener("change", (event) => go({ depth: event.target.value === "inf" ? null : Number(event.target.value) }));
  $("measured").addEventListener("change", (event) => go({ measured: event.target.checked }));
  $("result").addEventListener("change", (event) => {
    const one = event.target.value;
    go(one === "" ? { result: null, measured: false } : withResult(state, Number(one)));
  });
  $("to-best").addEventListener("click", () => {
    const best = bestWithin(measuredSettings(RESULTS[state.result], state.depth, state.overhead), state.budget);
    if (best) go({ exit: best.exit, k: best.k, measured: true });
  });
  $("time").addEventListener("input", (event) => go({ time: Number(event.target.value) }));
  $("play").addEventListener("click", play);
  $("copy-command").addEventListener("click", () => copy(asCommand(state), "command"));
  $("copy-python").addEventListener("click", () => copy(asPython(state), "Python"));
  $("copy-csv").addEventListener("click", () => copy(asCsv(state), "CSV"));
  addEventListener("hashchange", () => {
    state = fromAddress(location.hash);
    render();
  });
  new ResizeObserver(() => go({})).observe($("answers"));
}

function build() {
  $("data-box").hidden = !RESULTS.length;
  $("result").append(...RESULTS.map((one, i) => node("option", { value: i }, one.title)), node("option", { value: "" }, "nothing: numbers of your own"));
  $("depth").append(...DEPTHS.map((depth) => node("option", { value: depth ?? "inf" }, depth ?? "unlimited")));
  for (const [name, [label, nothing]] of Object.entries(COSTS)) {
    const input = node("input", { id: name, type: "number", min: nothing ? 0.01 : 0, step: "any" });
    input.addEventListener("input", () => {
      if (input.value !== "" && input.validity.valid) go({ costs: { ...state.costs, [name]: Number(input.value) } });
    });
    $("costs").append(node("label", { for: name }, label), input);
  }
}

build();
state = fromAddress(location.hash);
listen();
render();
