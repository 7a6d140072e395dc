// Repeats a request while the gateway is full.

const MOST_SECONDS = 60;
const GROWTH = 1.5;
const JITTER = 0.25;
// After the last try it gives up, and the question returns to its field.
const TRIES = 12;

/**
 * Calls `attempt` until it succeeds. It waits as long as the gateway says, longer each time.
 * @param {() => Promise<void>} attempt
 * @param {AbortSignal} signal ends the wait, too
 * @param {(seconds: number) => void} onWait gets the seconds that are left, once a second; 0 at the end
 */
export async function untilTaken(attempt, signal, onWait) {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      const isFull = [429, 503].includes(error.status) && error.retryAfter;
      if (!isFull || tries === TRIES) throw error;
      const seconds = Math.min(MOST_SECONDS, error.retryAfter * GROWTH ** (tries - 1));
      await countdown(seconds * (1 + JITTER * Math.random()), signal, onWait);
    }
  }
}

function countdown(seconds, signal, onWait) {
  const end = performance.now() + 1000 * seconds;
  return new Promise((resolve, reject) => {
    let timer = 0;
    const stop = () => {
      clearTimeout(timer);
      onWait(0);
      reject(signal.reason);
    };
    const step = () => {
      const left = (end - performance.now()) / 1000;
      onWait(Math.max(0, Math.ceil(left)));
      if (left > 0) {
        timer = setTimeout(step, 1000 * Math.min(1, left));
        return;
      }
      signal.removeEventListener("abort", stop);
      resolve();
    };
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop, { once: true });
    step();
  });
}
