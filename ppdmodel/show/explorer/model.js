/* What the page says of a setting, from the generated formulas: the numbers of ppdmodel.estimate. */
const DEPTHS = [1, 2, 3, 4, null];

function quantities(s, p = s.p) {
  const latency = latency_per_token(p, s.layers, s.exit, s.depth) + s.overhead;
  const compute = compute_per_token(p, s.layers, s.exit, s.k, s.depth);
  const peak = peak_units(s.layers, s.exit, s.k, s.depth);
  const saved = s.layers - latency;
  return {
    p_correct: p,
    latency_per_token: latency,
    normalized_latency: latency / s.layers,
    speedup: s.layers / latency,
    compute_per_token: compute,
    normalized_compute: compute / s.layers,
    saved,
    exchange_rate: saved === 0 ? null : (compute - s.layers) / saved,
    mean_units: compute / latency,
    peak_units: peak,
    reserved_units: peak * latency,
    expected_total_latency:
      expected_total_latency(p, s.layers, s.exit, s.tokens, s.depth) + s.overhead * s.tokens,
  };
}

/* Ends of what each quantity takes over an interval of the match rate, most being monotone in it;
   null where one is undefined somewhere in it. A price has none where latency passes that of plain
   decoding, its pole. */
function ranges(s, low, high, of = quantities) {
  const steps = 16, found = {};
  const all = Array.from({ length: steps + 1 }, (_, i) => of(s, low + ((high - low) * i) / steps));
  for (const name of Object.keys(all[0])) {
    const values = all.map((one) => one[name]);
    found[name] = values.every(Number.isFinite) ? [Math.min(...values), Math.max(...values)] : null;
  }
  if (found.exchange_rate && all.some((one) => one.saved > 0 !== all[0].saved > 0)) found.exchange_rate = null;
  return found;
}

/* The match rate from which on PPD reaches a speed-up, by bisection; null where none does. */
function neededRate(s, target) {
  const reached = (p) => latency_per_token(p, s.layers, s.exit, s.depth) + s.overhead <= s.layers / target;
  if (reached(0)) return 0;
  if (!reached(1)) return null;
  let low = 0, high = 1;
  for (let middle = 0.5; low < middle && middle < high; middle = (low + high) / 2) {
    if (reached(middle)) high = middle;
    else low = middle;
  }
  return Number(high.toFixed(12));
}

/* A result's measured match rate, {value, low, high}, or null where it has none. */
function measuredRate(result, exit, k) {
  const row = result?.hits[exit - 1];
  if (!row || k > row.length || row[k - 1] === null) return null;
  const [value, low, high] = [row[k - 1] / result.tokens, result.low?.[exit - 1][k - 1], result.high?.[exit - 1][k - 1]];
  return { value, low: low ?? null, high: high ?? null };
}

/* Every measured setting at one depth, with its latency and compute as ratios. */
function measuredSettings(result, depth, overhead) {
  const found = [];
  for (let exit = 1; exit < result.layers; exit += 1) {
    for (let k = 1; k <= result.hits[0].length; k += 1) {
      const rate = measuredRate(result, exit, k);
      if (rate === null) continue;
      const latency = (latency_per_token(rate.value, result.layers, exit, depth) + overhead) / result.layers;
      const compute = compute_per_token(rate.value, result.layers, exit, k, depth) / result.layers;
      found.push({ exit, k, depth, p: rate.value, latency, compute });
    }
  }
  return found;
}

/* Of a list of settings the first fastest one within a budget; null where plain decoding wins. */
function bestWithin(settings, budget) {
  let best = null;
  for (const one of settings) {
    if (one.compute <= budget && one.latency < (best ? best.latency - 1e-12 : 1)) best = one;
  }
  return best;
}

/* The settings that no other beats in both latency and compute, cheapest first. */
function frontier(settings) {
  const found = [];
  for (const one of [...settings].sort((a, b) => a.compute - b.compute || a.latency - b.latency)) {
    if (one.latency < 1 && (!found.length || one.latency < found[found.length - 1].latency)) found.push(one);
  }
  return found;
}

/* Costs of real units by argument of the calibrated formulas: label, value where nothing costs. */
const COSTS = {
  head_time: ["Head, norm and choice of the token", 0],
  exit_time: ["Reading the exit", 0],
  token_time: ["Rest of a token", 0],
  start_delay: ["Starting the guesses", 0],
  promotion_delay: ["Promoting a guess", 0],
  busy_layer_time: ["A layer while guesses run", 1],
  batch_layer_time: ["A layer of all guesses", 1],
};
/* Share of a batch layer that is left at a verdict: times of real units vary. */
const UNFINISHED = 0.5;

function hasCosts(s) {
  return Object.entries(COSTS).some(([name, [, nothing]]) => s.costs[name] !== nothing);
}

/* Why the formulas with costs do not hold for a setting, or "". */
function outsideCosts(s) {
  const c = s.costs;
  if (s.depth !== 1) return "they need depth 1";
  const ahead = calibrated_head_start(s.layers, s.exit, c.busy_layer_time, c.batch_layer_time, c.head_time, c.exit_time, c.start_delay);
  return ahead <= s.exit ? "" : `they need a later exit: guesses would be ${shown(ahead, 1)} layers ahead, past it`;
}

/* With those costs: latency and compute over plain decoding's, speed-up, break-even match rate. */
function withCosts(s, p = s.p) {
  const c = s.costs, d = s.layers, layers = [c.busy_layer_time, c.batch_layer_time];
  const delays = [c.exit_time, c.token_time, c.start_delay, c.promotion_delay, UNFINISHED];
  const speedup = calibrated_speedup(p, d, s.exit, 1, ...layers, c.head_time, c.head_time, ...delays);
  const compute = calibrated_compute(p, d, s.exit, s.k, ...layers, c.head_time, c.exit_time, c.start_delay, UNFINISHED);
  const even = calibrated_break_even(d, s.exit, 1, ...layers, c.head_time, c.head_time, ...delays);
  return {
    speedup,
    normalized_latency: 1 / speedup,
    normalized_compute: compute / calibrated_plain_compute(d, 1, c.head_time),
    break_even: even >= 0 && even <= 1 ? even : null,
  };
}
