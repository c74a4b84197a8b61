// What happened, drawn on every chart: resumes, knob changes by people, alerts, checkpoints, evaluations.

import { number } from "./format.js";
import { css } from "./theme_colours.js";

const QUIET = new Set(["checkpoint", "evaluation"]);
const SIGNS = { resume: "↻", knob: "◆", alert: "!", checkpoint: "▾", evaluation: "•" };

/** Turn an event into a marker, or null where it marks nothing. */
export function markerOf(event) {
  const at = { step: event.step, time: event.time };
  if (event.type === "started" && event.attempt > 1) {
    return { ...at, step: event.resume_step, type: "resume", text: `Attempt ${event.attempt} resumed from step ${event.resume_step}` };
  }
  if (event.type === "knob" && event.source === "user") {
    return { ...at, type: "knob", text: `${event.name}: ${number(event.old)} → ${number(event.new)}` };
  }
  if (event.type === "alert") return { ...at, type: "alert", text: event.message };
  if (event.type === "checkpoint") return { ...at, type: "checkpoint", text: `Checkpoint of step ${event.step}` };
  if (event.type === "evaluation") return { ...at, type: "evaluation", text: `Evaluation on ${event.prompts} prompts` };
  return null;
}

/** Draw markers over a uPlot: loud ones as lines, quiet ones as ticks at the foot. */
export function drawMarkers(plot, markers, axis) {
  const { ctx, bbox } = plot, ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.font = `${10 * ratio}px system-ui`;
  ctx.textAlign = "center";
  for (const marker of markers) {
    const x = Math.round(plot.valToPos(axis === "time" ? marker.time : marker.step, "x", true)) + 0.5;
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
    const quiet = QUIET.has(marker.type);
    ctx.strokeStyle = ctx.fillStyle = css(`--marker-${marker.type}`);
    ctx.lineWidth = ratio;
    ctx.globalAlpha = quiet ? 0.35 : 0.9;
    ctx.setLineDash(quiet ? [2 * ratio, 4 * ratio] : []);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top + (quiet ? 0 : 12 * ratio));
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (!quiet) ctx.fillText(SIGNS[marker.type], x, bbox.top + 9 * ratio);
  }
  ctx.restore();
}

/** Draw the value people just asked for, from now on, until the trainer's own target line takes over. */
export function drawPending(plot, value) {
  const y = Math.round(plot.valToPos(value, "y", true)) + 0.5, { ctx, bbox } = plot;
  if (y < bbox.top || y > bbox.top + bbox.height) return;
  ctx.save();
  ctx.strokeStyle = css("--chart-target");
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/** Markers within a few pixels of the cursor. */
export function markersNear(plot, markers, axis) {
  const { left } = plot.cursor;
  if (left === null || left < 0) return [];
  return markers.filter((marker) => Math.abs(plot.valToPos(axis === "time" ? marker.time : marker.step, "x") - left) < 6);
}
