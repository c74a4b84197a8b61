// Colours of rewards: orange low, grey in the middle, blue high; told apart by all common kinds of colour vision.

import { mix } from "./scale.js";

const ENDS = { light: ["#c2410c", "#8a94a3", "#0072b2"], dark: ["#fb923c", "#8a94a3", "#56b4e9"] };

/** Colour of a reward within [low, high]; ungraded completions are grey. */
export function rewardColour(reward, [low, high], theme) {
  const [down, middle, up] = ENDS[theme];
  if (reward === null || !(high > low)) return middle;
  const share = Math.max(0, Math.min(1, (reward - low) / (high - low)));
  return share < 0.5 ? mix(down, middle, share * 2) : mix(middle, up, share * 2 - 1);
}

/** The range that a group's rewards are coloured in: at least 0 to 1, so that one colour means one reward. */
export function rewardRange(rollouts) {
  const rewards = rollouts.map(({ reward }) => reward).filter((reward) => reward !== null && reward !== undefined);
  return [Math.min(0, ...rewards), Math.max(1, ...rewards)];
}
