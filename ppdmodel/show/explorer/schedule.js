/* One generation by PPD, event by event, as ppdmodel/schedule.py runs it: no formula.
   hits[i] says whether the guesses of token i held token i + 1. Processes that do the same at the
   same time are one group with a count; a group is true where its token and its line are equal. */
function runSchedule(hits, layers, exit, k, depth) {
  const VERIFIED = 0, EXIT = 1, START = 2;
  const last = hits.length, most = depth ?? last + 1;
  const events = [], held = new Map(), processes = [], finishes = [];
  let order = 0, live = 0, peak = 0, work = 0, root = null;
  const push = (time, kind, group) => events.push({ time, kind, order: order++, group });
  const earlier = (a, b) => a.time - b.time || a.kind - b.kind || a.order - b.order;
  const next = () => {
    let first = 0;
    for (let i = 1; i < events.length; i += 1) if (earlier(events[i], events[first]) < 0) first = i;
    return events.splice(first, 1)[0];
  };
  const enter = (token, line, count, started) => {
    const group = { token, line, count, started, children: [], alive: true };
    live += count;
    peak = Math.max(peak, live);
    if (token - line < most && token < last) push(started + exit, EXIT, group);
    return group;
  };
  const start = (group, now) => {
    let wrong = group.count * k;
    if (group.token === group.line && hits[group.token]) {
      group.children.push(enter(group.token + 1, group.token + 1, 1, now));
      wrong -= 1;
    }
    if (wrong > 0) group.children.push(enter(group.token + 1, group.line, wrong, now));
  };
  const end = (group, now, verified) => {
    group.alive = false;
    live -= group.count;
    const { token, line, count, started } = group;
    processes.push({ token, generation: token - line, count, started, ended: now, verified });
  };
  const drop = (group, now) => {
    const family = [group];
    for (const member of family) {
      end(member, now, false);
      work += member.count * Math.min(Math.max(now - member.started, 0), layers);
      family.push(...member.children);
    }
  };
  const verify = (now) => {
    work += layers;
    finishes.push(now);
    const right = root.children.find((child) => child.token === child.line);
    for (const child of root.children) if (child !== right) drop(child, now);
    end(root, now, true);
    const token = root.token + 1;
    if (token > last) return;
    root = right ?? enter(token, token, 1, now);
    push(Math.max(root.started + layers, now), VERIFIED, root);
    for (const group of held.get(token + most - 1) ?? []) push(now, START, group);
    held.delete(token + most - 1);
  };
  root = enter(0, 0, 1, 0);
  push(layers, VERIFIED, root);
  while (finishes.length <= last) {
    const { time, kind, group } = next();
    if (!group.alive) continue;
    if (kind === VERIFIED) verify(time);
    else if (kind === START || group.token - root.token < most) start(group, time);
    else held.set(group.token, [...(held.get(group.token) ?? []), group]);
  }
  return { finishes, processes, work, peak };
}
