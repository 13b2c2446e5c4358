/* The state, the controls that change it, the address that keeps it, and the drawing of it all. */
const RESULTS = JSON.parse(document.getElementById("results").textContent);
const $ = (id) => document.getElementById(id);
const SHOWN_TOKENS = 8;
const LIMITS = { p: [0, 1], layers: [1, 1000], exit: [1, 1000], k: [1, 1000], tokens: [1, 2000], overhead: [0, 1000], budget: [1, 1000], ms: [0, 1e9], seed: [0, 1e9], flips: [0, 2 ** SHOWN_TOKENS], time: [0, 1e6] };
const WHOLE = ["layers", "exit", "k", "tokens", "seed", "flips"];
const SLIDERS = ["p", "layers", "exit", "k", "tokens", "overhead", "budget"];
const MOST = { p: 1, layers: 128, k: 32, tokens: 1000, overhead: 20, budget: 6 }; // of the sliders
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

/* The result of a number in the list, or undefined for whatever else an address may say. */
function resultAt(number) {
  return Number.isInteger(number) && number >= 0 ? RESULTS[number] : undefined;
}

/* The measured rate where it is wanted and there is one; `measured` is the wish. */
function rateOf(s) {
  return s.measured ? measuredRate(resultAt(s.result), s.exit, s.k) : null;
}

/* A state whose numbers are within their limits, whatever was typed or stands in the address. */
function clean(s) {
  const found = { ...s };
  for (const [name, [low, high]] of Object.entries(LIMITS)) {
    const value = Number(found[name]);
    found[name] = Number.isFinite(value) ? Math.min(Math.max(value, low), high) : state[name];
    if (WHOLE.includes(name)) found[name] = Math.round(found[name]);
  }
  const source = resultAt(found.result);
  if (!source) Object.assign(found, { result: null, measured: false });
  else found.layers = source.layers;
  found.exit = Math.min(found.exit, found.layers);
  if (!DEPTHS.includes(found.depth)) found.depth = 1;
  const rate = rateOf(found);
  return rate ? { ...found, p: rate.value } : found;
}

function toAddress(s) {
  const parts = Object.entries(IN_ADDRESS).map(([key, name]) => [key, name === "depth" ? s.depth ?? "inf" : name === "result" ? s.result ?? "" : Number(s[name])]);
  const costs = Object.keys(COSTS).map((name) => s.costs[name]);
  return `#${new URLSearchParams([...parts, ["c", costs.join("_")]])}`;
}

function fromAddress(text) {
  const given = new Map([...new URLSearchParams(text.replace(/^#/, ""))].filter(([, value]) => value !== ""));
  if (!given.size && !/r=/.test(text)) return state;
  const result = given.has("r") ? Number(given.get("r")) : null;
  const found = { ...opening(resultAt(result) ? result : null) };
  for (const [key, name] of Object.entries(IN_ADDRESS)) {
    if (given.has(key) && name !== "result" && name !== "depth") found[name] = Number(given.get(key));
  }
  if (given.has("D")) found.depth = given.get("D") === "inf" ? null : Number(given.get("D"));
  found.measured = given.get("m") === "1";
  found.costs = { ...found.costs };
  Object.entries(COSTS).forEach(([name, [, nothing]], i) => {
    const cost = Number(given.get("c")?.split("_")[i] ?? NaN);
    if (cost >= 0 && cost <= 1e6 && (cost > 0 || nothing === 0)) found.costs[name] = cost;
  });
  return clean(found);
}

/* The address follows the state when it rests. It must not stop the page where it may not be set. */
let kept = null;
function keepAddress() {
  clearTimeout(kept);
  kept = setTimeout(() => {
    try {
      if (toAddress(state) !== location.hash) history.replaceState(null, "", toAddress(state));
    } catch {
      // a page in a frame has no address of its own
    }
  }, 250);
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

/* What was worked out last, while the numbers that it depends on stay. */
function remembered(work) {
  let key = null, value = null;
  return (...given) => {
    const now = JSON.stringify(given);
    if (now !== key) [key, value] = [now, work(...given)];
    return value;
  };
}
const settingsOf = remembered((result, depth, overhead) => (resultAt(result) ? measuredSettings(RESULTS[result], depth, overhead) : []));
const totalOf = remembered((p, layers, exit, tokens, depth) => totalLatency(p, layers, exit, tokens, depth));

function render() {
  const s = { ...state, pattern: pattern(state) };
  const source = resultAt(s.result), numbers = quantities(s), rate = rateOf(s);
  const spread = rate && rate.low !== null ? ranges(s, rate.low, rate.high) : null;
  const settings = settingsOf(s.result, s.depth, s.overhead), best = bestWithin(settings, s.budget);
  renderControls(s, source, best);
  const words = verdict(s, numbers, spread);
  $("verdict").textContent = words;
  say(words);
  $("best").textContent = bestWords(s, source, best);
  renderCards(numbers, spread);
  renderTimeline(s);
  renderNumbers(s, source, numbers, spread, rate);
  drawTrade($("trade"), s, numbers, spread, settings, best, go);
  $("trade-hint").textContent = source
    ? "A dot per measured exit layer and k; the green line joins those that no other beats, the star is the best within the budget, the ring where you are. Press a dot to go to it, or use the sliders."
    : "Along the exit layer at this match rate; thin lines are match rates of .3, .5, .7 and .9. The ring is where you are. On a real model the rate grows with the exit layer.";
  $("rates-box").hidden = !source;
  if (source) drawRates($("rates"), s, source, best, go);
  keepAddress();
}

/* For those who hear the page: the verdict, when it has come to rest. */
let saying = null;
function say(words) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    if ($("said").textContent !== words) $("said").textContent = words;
  }, 800);
}

function verdict(s, numbers, spread) {
  const saved = 1 - numbers.normalized_latency, more = numbers.normalized_compute - 1;
  let extra = `${percent(more)} more compute`;
  if (!Number.isFinite(more)) extra = "more compute than can be counted";
  else if (more > 9) extra = `${more < 999 ? shown(more + 1, 0) : (more + 1).toExponential(1)} times the compute`;
  const costs = hasCosts(s) && !outsideCosts(s) ? ` With your costs: ${change(1 - withCosts(s).normalized_latency)}.` : "";
  const [low, high] = (spread?.normalized_latency ?? []).map((x) => percent(1 - x)).reverse();
  const sure = low ? ` (95% interval: ${low} to ${high})` : "";
  if (saved < -1e-12) return `At p = ${shown(s.p, 3)}, PPD costs ${percent(saved)} more time per token and does not pay.${costs}`;
  if (saved <= 1e-12) return `At p = ${shown(s.p, 3)}, PPD saves no time and costs ${extra}.${costs}`;
  return `At p = ${shown(s.p, 3)}, PPD takes ${percent(saved)} off the latency${sure} for ${extra}.${costs}`;
}

function change(saved) {
  return saved > 0 ? `${percent(saved)} off` : `${percent(saved)} more time, it does not pay`;
}

function renderCards(numbers, spread) {
  const cards = { "latency, × plain": "normalized_latency", "speed-up": "speedup", "compute, × plain": "normalized_compute", "processes, peak": "peak_units" };
  $("cards").replaceChildren(...Object.entries(cards).map(([words, name]) => {
    const digits = name === "peak_units" ? 0 : name === "normalized_latency" ? 3 : 2;
    const ends = digits && spread?.[name] ? `[${spread[name].map((x) => shown(x, digits)).join(", ")}]` : "";
    return node("div", {}, node("dt", {}, words), node("dd", {}, shown(numbers[name], digits), node("small", {}, ends)));
  }));
}

function bestWords(s, source, best) {
  if (!source) return "";
  const depth = s.depth === null ? "unlimited depth" : `depth ${s.depth}`;
  if (!best) return `Within ${s.budget}× compute nothing measured is faster than plain decoding at ${depth}.`;
  return `Best single exit within ${s.budget}× compute at ${depth}: exit layer ${best.exit}, k = ${best.k}, ${shown(best.latency, 3)} of plain decoding's latency (the star). The best of many looks better than it is; ppdmodel optimize judges it on other prompts, and lists two exits and gates.`;
}

function renderTimeline(s) {
  const run = runSchedule(s.pattern, s.layers, s.exit, s.k, s.depth), end = run.finishes[run.finishes.length - 1];
  const time = Math.min(s.time, end);
  drawTimeline($("timeline"), s, run, time);
  $("time").max = end;
  $("time").value = time;
  $("time-shown").textContent = shown(time, 0);
  $("now").replaceChildren(...doing(s, run, time).map((words) => node("li", {}, words)));
  s.pattern.forEach((hit, i) => {
    $(`hit-${i}`).setAttribute("aria-pressed", hit);
    $(`hit-${i}`).textContent = `token ${i + 2}: ${hit ? "match" : "miss"}`;
  });
}

function renderNumbers(s, source, numbers, spread, rate) {
  const total = totalOf(s.p, s.layers, s.exit, s.tokens, s.depth), paid = s.overhead * s.tokens;
  drawTotal($("total"), s, total);
  $("total-hint").textContent = `Plain decoding takes ${shown(s.tokens * s.layers, 0)} layer times. Exact, for matches that are independent of each other.`;
  const price = numbers.saved > 0 ? numbers.exchange_rate : null;
  const rows = [
    ["Match rate p_correct", numbers.p_correct, spread?.p_correct, 3, ""],
    ["Latency per token", numbers.latency_per_token, spread?.latency_per_token, 2, "layer times"],
    ["Latency against plain decoding", numbers.normalized_latency, spread?.normalized_latency, 3, "×"],
    ["Speed-up", numbers.speedup, spread?.speedup, 2, "×"],
    ["Compute per token", numbers.compute_per_token, spread?.compute_per_token, 2, "layers"],
    ["Compute against plain decoding", numbers.normalized_compute, spread?.normalized_compute, 3, "×"],
    ["Price: extra compute per layer time saved", price, price === null ? null : spread?.exchange_rate, 2, "layers"],
    ["Processes, mean", numbers.mean_units, spread?.mean_units, 2, ""],
    ["Processes, peak", numbers.peak_units, null, 0, ""],
    ["Reserved per token (peak)", numbers.reserved_units, spread?.reserved_units, 2, "layers"],
    ["Match rate to break even", neededRate(s, 1), null, 3, ""],
    [`${s.tokens} tokens, mean`, total.mean + paid, spread?.expected_total_latency, 1, "layer times"],
    [`${s.tokens} tokens, standard deviation`, total.std, null, 1, "layer times"],
    ...[50, 95, 99].map((n) => [`${s.tokens} tokens, p${n}`, total.quantile(n / 100) + paid, null, 1, "layer times"]),
    ...costRows(s, rate),
  ];
  const cell = (words) => node("td", { class: "number" }, words);
  $("rows").replaceChildren(...rows.map(([name, value, ends, digits, unit]) => {
    const interval = ends ? `[${shown(ends[0], digits)}, ${shown(ends[1], digits)}]` : "";
    const seconds = s.ms && unit === "layer times" ? `${shown(value * s.ms, 1)} ms` : "";
    return node("tr", {}, node("th", { scope: "row" }, name), cell(shown(value, digits)), cell(interval), node("td", {}, unit), cell(seconds));
  }));
  $("source").textContent = source ? `${source.title}: ${source.tokens} tokens of ${source.prompts} prompts. ${source.note}` : "No measurement: the match rate is what you make it.";
}

function costRows(s, rate) {
  if (!hasCosts(s)) return [];
  const outside = outsideCosts(s);
  if (outside) return [[`With the costs: ${outside}`, null, null, 2, ""]];
  const found = withCosts(s), ends = rate && rate.low !== null ? ranges(s, rate.low, rate.high, withCosts) : {};
  return [
    ["With the costs: latency against plain decoding", found.normalized_latency, ends.normalized_latency, 3, "×"],
    ["With the costs: speed-up", found.speedup, ends.speedup, 2, "×"],
    ["With the costs: compute against plain decoding", found.normalized_compute, ends.normalized_compute, 3, "×"],
    ["With the costs: match rate to break even", found.break_even, null, 3, ""],
  ];
}

function renderControls(s, source, best) {
  $("exit").max = $("exit-range").max = s.layers;
  $("layers").disabled = $("layers-range").disabled = Boolean(source);
  $("measured").checked = s.measured;
  $("measured").disabled = !source;
  $("measured-words").textContent = s.measured && !rateOf(s) ? "use the measured match rate (none for this exit and k)" : "use the measured match rate";
  $("to-best").disabled = !best;
  for (const name of SLIDERS) {
    if (name !== "exit") $(`${name}-range`).max = Math.max(s[name], MOST[name]);
    $(`${name}-range`).value = s[name];
    show(name, shownIn(name));
  }
  show("ms", shownIn("ms"));
  $("depth").value = s.depth ?? "inf";
  $("result").value = s.result ?? "";
  for (const name of Object.keys(COSTS)) show(name, shownIn(name));
}

/* What stands in a number box while nobody types in it. */
function shownIn(name) {
  if (name === "p") return Number(state.p.toFixed(6));
  if (name === "ms") return state.ms || "";
  return name in COSTS ? state.costs[name] : state[name];
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
  const source = resultAt(s.result), added = (amount) => (amount ? ` + ${amount}` : "");
  const lines = [
    ...(source && rateOf(s) ? [`# p_correct as measured on ${JSON.stringify(source.title)}`] : []),
    "import ppdmodel as ppd",
    "",
    `setting = dict(p_correct=${s.p}, layers=${s.layers}, exit_layer=${s.exit}, depth=${s.depth ?? "None"})`,
    `print(ppd.latency_per_token(**setting)${added(s.overhead)})  # layer times`,
    `print(ppd.compute_per_token(**setting, k=${s.k}))  # layer executions`,
    `print(ppd.total_latency(**setting, tokens=${s.tokens}).quantile(0.95)${added(s.overhead * s.tokens)})  # p95, layer times`,
  ];
  if (hasCosts(s) && !outsideCosts(s)) {
    const costs = Object.keys(COSTS).map((name) => `${name}=${s.costs[name]}`).join(", ");
    lines.push(`costs = dict(layer_time=1, plain_head_time=${s.costs.head_time}, ${costs})`);
    lines.push(`print(ppd.calibrated_speedup(${s.p}, ${s.layers}, ${s.exit}, **costs))  # with the costs`);
  }
  return `${lines.join("\n")}\n`;
}

/* A row per exit layer at this match rate, or per measured exit layer and k. */
function asCsv(s) {
  const names = Object.keys(quantities(s)).filter((name) => !["p_correct", "saved"].includes(name)), rows = [];
  const add = (exit, k, rate) => {
    const found = quantities({ ...s, exit, k }, rate.value);
    rows.push([exit, k, s.depth ?? "inf", rate.value, rate.low ?? "", rate.high ?? "", ...names.map((name) => (Number.isFinite(found[name]) ? found[name] : ""))].join(","));
  };
  const source = resultAt(s.result);
  if (source) for (const one of measuredSettings(source, s.depth, s.overhead)) add(one.exit, one.k, measuredRate(source, one.exit, one.k));
  else for (let exit = 1; exit <= s.layers; exit += 1) add(exit, s.k, { value: s.p });
  return `exit_layer,k,depth,p_correct,p_low,p_high,${names.join(",")}\n${rows.join("\n")}\n`;
}

async function copy(text, words) {
  const without = words !== "Python" && hasCosts(state) ? ", without the costs" : "";
  $("copied").value = text;
  try {
    await navigator.clipboard.writeText(text);
    $("copy-status").textContent = `Copied as ${words}${without}`;
  } catch {
    $("copied").select();
    $("copy-status").textContent = `Here as ${words}${without}: press Ctrl-C to copy`;
  }
}

let playing = null;
function stop() {
  cancelAnimationFrame(playing);
  playing = null;
  $("play").textContent = "Play";
  keepAddress();
}

function play() {
  if (playing !== null) return stop();
  $("play").textContent = "Pause";
  const at = Number($("time").value), from = at >= Number($("time").max) ? 0 : at;
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

/* Sliders act as they move; number boxes when they are left or Enter is pressed, since 3 and 30 are
   on the way to 300. What cannot be is said and put back. */
function number(id, change) {
  const box = $(id);
  box.addEventListener("change", () => {
    const good = box.value !== "" && box.validity.valid;
    $("refused").textContent = good || (id === "ms" && box.value === "" && !box.validity.badInput) ? "" : `${box.labels[0].textContent}: ${box.validationMessage || "give a number"}`;
    if (good) change(Number(box.value));
    else if (id === "ms" && !$("refused").textContent) change(0);
    requestAnimationFrame(() => { box.value = shownIn(id); });
  });
}

function listen() {
  for (const name of SLIDERS) {
    const take = (value) => go({ [name]: value, ...(name === "p" ? { measured: false } : {}) });
    $(`${name}-range`).addEventListener("input", (event) => take(Number(event.target.value)));
    number(name, take);
  }
  number("ms", (ms) => go({ ms }));
  for (const name of Object.keys(COSTS)) number(name, (cost) => go({ costs: { ...state.costs, [name]: cost } }));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("depth").addEventListener("change", (event) => go({ depth: event.target.value === "inf" ? null : Number(event.target.value) }));
  $("measured").addEventListener("change", (event) => go({ measured: event.target.checked }));
  $("result").addEventListener("change", (event) => {
    const one = event.target.value;
    go(one === "" ? { result: null, measured: false } : withResult(state, Number(one)));
  });
  $("to-best").addEventListener("click", () => {
    const best = bestWithin(settingsOf(state.result, state.depth, state.overhead), state.budget);
    if (best) go({ exit: best.exit, k: best.k, measured: true });
  });
  $("time").addEventListener("input", (event) => {
    const time = Number(event.target.value);
    if (playing !== null) stop();
    go({ time });
  });
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
    const input = node("input", { id: name, type: "number", min: nothing ? 0.01 : 0, max: 1e6, step: "any" });
    $("costs").append(node("label", { for: name }, label), input);
  }
  for (let i = 0; i < SHOWN_TOKENS - 1; i += 1) {
    const hit = node("button", { type: "button", id: `hit-${i}`, "aria-label": `token ${i + 2} matches` });
    hit.addEventListener("click", () => go({ flips: state.flips ^ (1 << i) }));
    $("hits").append(hit);
  }
  const again = node("button", { type: "button", id: "again" }, "New matches");
  again.addEventListener("click", () => go({ seed: state.seed + 1, flips: 0 }));
  $("hits").append(again);
}

build();
state = fromAddress(location.hash);
listen();
render();
