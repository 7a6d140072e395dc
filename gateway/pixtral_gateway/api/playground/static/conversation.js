// The questions and answers: kept in this tab, and gone with it.

const STORED = "conversation";

export class Conversation {
  /** Each: question, pictures, sampling, answer, state, and what the gateway told at its end. */
  turns = [];

  add(question, pictures, sampling) {
    const turn = { question, pictures, sampling, answer: "", state: "answering", finish: null };
    this.turns.push(turn);
    return turn;
  }

  remove(turn) {
    this.turns = this.turns.filter((each) => each !== turn);
  }

  clear() {
    this.turns = [];
    this.save();
  }

  /** The messages of a turn: itself behind all before it that have an answer. */
  asked(turn) {
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    return [...before.filter((each) => each.answer), turn];
  }

  get pictures() {
    return this.turns.reduce((sum, turn) => sum + (turn.answer ? turn.pictures.length : 0), 0);
  }

  /** The longest answer in seconds, which is the scale of every timeline. */
  get longest() {
    return Math.max(0, ...this.turns.map((turn) => turn.pixtral?.timings.total_seconds ?? 0));
  }

  save() {
    try {
      sessionStorage.removeItem(STORED);
      if (this.turns.length) sessionStorage.setItem(STORED, JSON.stringify(this.turns));
    } catch {
      // More than a browser keeps, or none is kept here: a reload begins anew.
    }
  }

  load() {
    try {
      this.turns = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
    } catch {
      this.turns = [];
    }
    for (const turn of this.turns) {
      if (turn.state === "answering") turn.state = "stopped";
    }
  }

  exported(model) {
    return {
      model,
      exported: new Date().toISOString(),
      conversation: this.turns.map((turn) => ({
        messages: messagesOf([turn], turn.sampling.system),
        sampling: turn.sampling,
        answer: turn.answer,
        state: turn.state,
        finish_reason: turn.finish,
        usage: turn.usage ?? null,
        pixtral: turn.pixtral ?? null,
        error: turn.error ?? null,
      })),
    };
  }
}

/** As OpenAI has them; `show` says how a picture is written. */
export function messagesOf(turns, system, show = (picture) => picture.url) {
  const messages = system ? [{ role: "system", content: system }] : [];
  turns.forEach((turn, i) => {
    const pictures = turn.pictures.map((picture) => ({
      type: "image_url",
      image_url: { url: show(picture) },
    }));
    const text = turn.question ? [{ type: "text", text: turn.question }] : [];
    const content = pictures.length ? [...pictures, ...text] : turn.question;
    messages.push({ role: "user", content });
    if (i < turns.length - 1) messages.push({ role: "assistant", content: turn.answer });
  });
  return messages;
}

/** The picture that an error's `param` names: the turn's index among those asked, and its own. */
export function placeOf(param, turns, system) {
  const found = /^messages\.(\d+)\.content\.(\d+)\.image_url/.exec(param ?? "");
  if (!found) return null;
  const turn = (Number(found[1]) - (system ? 1 : 0)) / 2;
  return turns[turn] ? { turn: turns[turn], picture: Number(found[2]) } : null;
}
