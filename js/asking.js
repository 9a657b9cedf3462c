/**
 * Asking the pack's routes (nodes/routes.py): once for many keys, and only the latest answer counts.
 */
import { api } from "../../scripts/api.js";
import { message } from "./words.js";

/**
 * @param {string} route
 * @param {{pause: number, silent: string, show: function(Object): void, say: function(string): void}} options
 *   pause: milliseconds without a change before the server is asked; silent: what is said when it does not answer
 * @returns {{ask: function(string): void, tell: function(string): void, stop: function(): void}}
 */
export function asker(route, { pause, silent, show, say }) {
  let asked; // what is shown or on its way: a request, or what was said instead
  let timer;
  let request;

  async function send(body) {
    request = new AbortController();
    const { signal } = request;
    try {
      const answer = await post(route, body, silent, signal);
      if (!signal.aborted) show(answer);
    } catch (error) {
      if (!signal.aborted) say(error.message);
    }
  }

  function stop() {
    clearTimeout(timer);
    request?.abort();
  }

  function isNew(what) {
    if (what === asked) return false;
    asked = what;
    stop();
    return true;
  }

  return {
    /** @param {string} body JSON */
    ask(body) {
      if (isNew(body)) timer = setTimeout(send, pause, body);
    },
    /** Say why the server is not asked. */
    tell(text) {
      if (isNew(text)) say(text);
    },
    stop,
  };
}

/**
 * @param {string} route
 * @param {string} body JSON
 * @param {string} silent as above
 * @param {AbortSignal} [signal]
 * @returns {Promise<Object>} throws an Error with the server's sentence, or the silent one
 */
export async function post(route, body, silent, signal) {
  return answered(await api.fetchApi(`/qwen_image_2/${route}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body, signal }), silent);
}

/** The same of a route that is only read. */
export async function get(route, query, silent) {
  return answered(await api.fetchApi(`/qwen_image_2/${route}?${new URLSearchParams(query)}`), silent);
}

async function answered(response, silent) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.parts ? message(answer.parts) : silent);
  return answer;
}
