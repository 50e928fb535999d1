// One exchange in plain words. Nothing here touches the page.

import { duration } from "./format.js";

export const FLAGS = {
  NR: "no rule matches",
  UH: "no provider can be called",
  UF: "the provider can't be reached",
  UC: "the provider closed the connection",
  UT: "no first byte in time",
  SI: "the provider stopped midway",
  UPE: "the provider's answer is not HTTP",
  UE: "the provider answered 200, and then an error",
  DC: "the client left",
  DPE: "the client's request can't be routed",
  OB: "observed only",
  OM: "too many large requests at once",
  UAEX: "the host is not allowed",
  LR: "the proxy was stopped",
  IE: "a fault of Pointsman's",
};

const FIRST_ERROR = 400;

// What these two say is what pointsman.telemetry.verdicts says; a test compares them.
export const isError = (one) => one.status === null || one.status >= FIRST_ERROR || Boolean(one.error);

/** Whether another target than the first was asked. */
export const failedOver = (one) => new Set(one.attempts.map((attempt) => attempt.provider)).size > 1;

/** What happened, in a sentence or two. */
export function summary(one) {
  const said = [];
  const by = one.provider ?? "no provider";
  const took = duration(one.duration_ms);
  if (one.mirror) said.push("This is a mirrored copy: the client never saw its answer.");
  else if (one.replay) said.push("A person has sent it again, from a UI.");
  if (one.flags.includes("OB")) {
    said.push(`Observed only: the rules would have chosen ${by}. The request went where the client sent it,`
      + ` and ${one.status === null ? "got no answer" : `was answered with ${one.status}`} after ${took}.`);
  } else if (one.flags.includes("DC") && !one.attempts.length) {
    said.push(`The client left after ${took}, before any provider was asked.`);
  } else if (!one.attempts.length) {
    said.push(`Refused${one.status === null ? "" : ` with ${one.status}`}: no provider was asked.`);
  } else if (one.flags.includes("DC")) {
    said.push(`The client left after ${took}, before it had the whole answer of ${by}.`);
  } else if (one.status === null) {
    said.push(`There was no answer within ${took}.`);
  } else if (one.attempts.at(-1).status === null) {
    // The last one gave none: the status is Pointsman's own.
    const names = [...new Set(one.attempts.map((attempt) => attempt.provider))];
    said.push(`Pointsman answered with ${one.status} after ${took}: ${names.join(", then ")} failed.`);
  } else {
    const before = [...new Set(one.attempts.map((attempt) => attempt.provider))].filter((name) => name !== by);
    const after = before.length ? `, after ${before.join(", then ")} had failed` : "";
    said.push(`${by} answered with ${one.status} in ${took}${after}.`);
  }
  if (one.error) said.push(sentence(one.error));
  return said;
}

/** How the target was chosen: an array of lines. */
export function choice({ decision }) {
  if (!decision) return ["How this was decided was not kept."];
  const { draw, targets, skipped, by_hand: byHand } = decision;
  const said = [];
  if (targets.length) {
    if (byHand) said.push(`A person chose ${targets[0]}, by llm.replay.`);
    else if (draw === null) said.push("An affinity chose: the same value goes to the same target while it is healthy.");
    else if (targets.length + skipped.length === 1) said.push("The rule has one target, so it takes all.");
    else said.push(`The draw was ${draw.toFixed(4)}, of 0 to 1: by priority and weight it fell to ${targets[0]}.`);
    if (targets.length > 1) said.push(`If that fails: ${targets.slice(1).join(", then ")}.`);
  } else {
    said.push("No target was chosen.");
  }
  if (skipped.length) said.push(`Skipped, as ejected after failures: ${skipped.join(", ")}.`);
  return said;
}

/** One attempt: what came of it. */
export function attempted(attempt) {
  const took = attempt.duration_ms === null ? "" : ` after ${duration(attempt.duration_ms)}`;
  const answered = attempt.status === null ? "no answer" : `answered ${attempt.status}`;
  // "status 503" says no more than the status.
  const told = attempt.error && attempt.error !== `status ${attempt.status}`;
  return `${answered}${told ? ` (${attempt.error})` : ""}${took}`;
}

/** A phrase, or an identifier such as `upstream_failure`, as a sentence. */
function sentence(text) {
  const words = /^[a-z]+(_[a-z]+)+$/.test(text) ? text.replaceAll("_", " ") : text;
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}${words.endsWith(".") ? "" : "."}`;
}
