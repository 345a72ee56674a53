// Moments and limits, in milliseconds of a clock that never goes back.

import { TIMER_MS_MAX } from "./options.js";

export const now = () => performance.now();

// What a promise answers within this time, else undefined.
export async function within(promise, limitMs) {
  let timer;
  const limit = new Promise((resolve) => {
    timer = setTimeout(resolve, Math.max(0, Math.min(limitMs, TIMER_MS_MAX)));
  });
  try {
    return await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}
