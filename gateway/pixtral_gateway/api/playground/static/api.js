// The gateway's public OpenAI API, as any client speaks it.

export class ApiError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

export class Api {
  #key = "";

  useKey(key) {
    this.#key = key;
  }

  get hasKey() {
    return this.#key !== "";
  }

  /** The models that are served, with their limits: the first, and adapters over it. */
  async models() {
    const response = await this.#fetch("v1/models", {});
    return (await response.json()).data;
  }

  /** Yields the chunks of an answer as they come. Aborting the signal cancels it in the engine. */
  async *stream(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    try {
      for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw errorOf(chunk, { status: response.status });
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === "AbortError") throw error;
    }
    throw new ApiError("The connection ended before the answer did.");
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The gateway cannot be reached.");
    }
    if (response.ok) return response;
    const told = {
      status: response.status,
      retryAfter: Number(response.headers.get("Retry-After")) || null,
    };
    throw errorOf(await response.json().catch(() => ({})), told);
  }
}

function errorOf(body, told) {
  const { message = `The gateway answered ${told.status}.`, param = null } = body.error ?? {};
  return new ApiError(message, { ...told, param });
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  } finally {
    // Nobody needs the connection after the stream has ended or failed.
    reader.cancel().catch(() => {});
  }
}
