// Where groups of rollouts come from: the sample in an offline file, or a server that has all of them.

const matches = (sample, group, query) =>
  [sample.text, group.task, group.prompt, group.answer, ...(sample.conversation ?? []).map((turn) => turn[1])].some((text) => text && text.toLowerCase().includes(query));

const kindOf = (group) => {
  const rewards = group.samples.filter((each) => each.outcome === "score").map((each) => each.reward);
  if (group.samples.some((each) => each.outcome === "failed")) return "failed";
  return Math.max(...rewards) > Math.min(...rewards) ? "differ" : "alike";
};

export const offlineSource = (samples) => ({
  live: false,
  total: samples.total,
  shown: samples.shown,
  async groups({ step, task, q, kind }) {
    const query = q.toLowerCase();
    let found = samples.groups.filter((group) =>
      (!task || group.task === task) && (!kind || kindOf(group) === kind || group.why.some((each) => each === kind)) &&
      (!query || group.samples.some((each) => matches(each, group, query))));
    if (step && found.length) {
      const steps = [...new Set(found.map((group) => group.step))];
      const near = steps.reduce((best, each) => (Math.abs(each - step) < Math.abs(best - step) ? each : best));
      found = found.filter((group) => group.step === near);
    }
    return { groups: found, next: null, searched: "" };
  },
});

export const liveSource = (samples) => ({
  live: true,
  total: samples.total,
  shown: samples.total,
  async groups({ step, task, q, kind }, cursor = "") {
    const query = new URLSearchParams(Object.entries({ step, task, q, kind, cursor }).filter(([, value]) => value));
    const answer = await fetch(`samples?${query}`);
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 500));
    return answer.json();
  },
});
