/* The exact distribution of a text's total latency, counted as ppdmodel/distribution.py does:
   theory page 4, equations (4.2), which is generated, and (4.3). */
function totalLatency(p, layers, exit, tokens, depth) {
  const trials = tokens - 1, chances = new Map();
  const logs = new Float64Array(trials + 2);
  for (let n = 1; n < logs.length; n += 1) logs[n] = logs[n - 1] + Math.log(n);
  const power = (count, x) => (count === 0 ? 0 : count * Math.log(x)); // 0 log 0 is 0
  const add = (hits, groups, chance) => {
    if (!(chance > 0)) return;
    const time = generation_time(layers, exit, tokens, hits, groups, depth);
    chances.set(time, (chances.get(time) ?? 0) + chance);
  };
  const size = depth === null ? Infinity : depth + 1;
  if (size * exit < layers) eachRun(p, trials, size, logs, power, add);
  else {
    for (let h = 0; h <= trials; h += 1) {
      const ways = logs[trials] - logs[h] - logs[trials - h];
      add(h, 0, Math.exp(ways + power(h, p) + power(trials - h, 1 - p)));
    }
  }
  const times = [...chances.keys()].sort((a, b) => a - b);
  const whole = times.reduce((total, time) => total + chances.get(time), 0);
  const probabilities = times.map((time) => chances.get(time) / whole);
  const mean = times.reduce((total, time, i) => total + time * probabilities[i], 0);
  const variance = times.reduce((total, time, i) => total + (time - mean) ** 2 * probabilities[i], 0);
  const quantile = (q) => {
    let below = 0;
    for (let i = 0; q < 1 && i < times.length; i += 1) {
      below += probabilities[i];
      if (below >= q * (1 - 1e-12)) return times[i];
    }
    return times[times.length - 1];
  };
  return { times, probabilities, mean, std: Math.sqrt(variance), quantile };
}

/* Where a group of matches makes the next token wait: m misses cut the matches into m + 1 runs,
   each of whole groups and a rest below their size. `rests` are the weights of the rests' sum. */
function eachRun(p, trials, size, logs, power, add) {
  const row = Array.from({ length: Math.min(size, trials + 1) }, (_, n) => p ** n);
  let rests = row, scale = 0;
  for (let misses = 0; misses <= trials; misses += 1) {
    const hits = trials - misses;
    for (let rest = hits % size; rest <= Math.min(hits, rests.length - 1); rest += size) {
      const groups = (hits - rest) / size;
      const ways = logs[groups + misses] - logs[groups] - logs[misses];
      const chance = ways + power(size * groups, p) + power(misses, 1 - p);
      add(hits, groups, Math.exp(chance + Math.log(rests[rest]) + scale));
    }
    rests = convolved(rests, row, trials + 1);
    const largest = Math.max(...rests);
    rests = rests.map((x) => x / largest);
    scale += Math.log(largest);
  }
}

function convolved(long, short, most) {
  const found = new Array(Math.min(long.length + short.length - 1, most)).fill(0);
  for (let i = 0; i < long.length; i += 1) {
    for (let j = 0; j < short.length && i + j < found.length; j += 1) found[i + j] += long[i] * short[j];
  }
  return found;
}
