// One question and its answers.

import { duration, grouped, icon, make } from "../dom.js";
import { fit } from "../inputs.js";
import { zoomable } from "../zoom.js";
import { AnswerView } from "./answer_view.js";

export class TurnView {
  #turn;
  #context;
  #question = make("div", { className: "question" });
  #answers = make("div", { className: "answers" });
  #views = new Map();

  /**
   * @param {import("../conversation.js").Turn} turn
   * @param {object} context
   * @param {(column: number) => object} context.request what "As code" shows
   * @param {() => number} context.longest
   * @param {object} context.on what the buttons do: regenerate, goOn, sendResults, edit
   */
  constructor(turn, context) {
    this.#turn = turn;
    this.#context = context;
    this.element = make("li", { className: "turn" }, this.#question, this.#answers);
    this.#drawQuestion();
    this.showAnswers();
  }

  /** Shows the answers that the turn shows, after one more or another one. */
  showAnswers() {
    const { answers, shown, isComparison } = this.#turn;
    const visible = isComparison ? answers : answers.slice(shown, shown + 1);
    this.#answers.classList.toggle("beside", isComparison);
    this.#answers.replaceChildren(...visible.map((answer) => this.#viewOf(answer).element));
    this.#drawBadges();
  }

  get text() {
    return this.#visible.map((view) => view.text).join("\n");
  }

  update(answer, around) {
    if (this.#visible.includes(this.#views.get(answer))) this.#views.get(answer).update(around);
  }

  showState(seconds) {
    for (const view of this.#visible) view.showState(seconds);
  }

  finish() {
    for (const view of this.#views.values()) view.finish();
    this.#drawBadges();
  }

  /** @param {{isLast: boolean, isBusy: boolean}} state */
  showActions(state) {
    this.#turn.answers.forEach((answer, i) => {
      if (!this.#views.has(answer)) return;
      const position = this.#position(i, state);
      this.#views.get(answer).showActions({ ...state, position });
    });
    for (const button of this.#question.querySelectorAll("button.edit")) button.disabled = state.isBusy;
  }

  rescale() {
    for (const view of this.#views.values()) view.rescale();
  }

  get #visible() {
    const { answers, shown, isComparison } = this.#turn;
    const visible = isComparison ? answers : answers.slice(shown, shown + 1);
    return visible.map((answer) => this.#views.get(answer));
  }

  #viewOf(answer) {
    if (!this.#views.has(answer)) {
      const { on, request, longest } = this.#context;
      const column = this.#turn.answers.indexOf(answer);
      const view = new AnswerView(answer, {
        on,
        longest,
        request: () => request(column),
        isNamed: this.#turn.isComparison,
      });
      this.#views.set(answer, view);
    }
    return this.#views.get(answer);
  }

  /** "2 of 3", with a step to each side. */
  #position(i, state) {
    const { answers, isComparison } = this.#turn;
    if (answers.length < 2 || isComparison) return null;
    const step = (by, name, label) => {
      const to = i + by;
      const properties = { type: "button", className: "quiet step", title: label, "aria-label": label };
      const disabled = state.isBusy || to < 0 || to >= answers.length;
      return make("button", { ...properties, disabled, onclick: () => this.#context.on.show(to) }, icon(name));
    };
    return make(
      "span",
      { className: "position" },
      step(-1, "before", "The answer before"),
      make("span", {}, `${i + 1} of ${answers.length}`),
      step(1, "after", "The next answer"),
    );
  }

  #drawQuestion() {
    const { question, pictures, results } = this.#turn;
    const figures = pictures.map((picture) =>
      make(
        "figure",
        {},
        zoomable(picture),
        make(
          "figcaption",
          {},
          make("span", { className: "name" }, picture.name),
          make("span", { className: "badge", hidden: true }),
        ),
      ),
    );
    const given = results.map(({ content }) => make("pre", { className: "result" }, content || "(empty)"));
    const edit = make(
      "button",
      { type: "button", className: "quiet edit", title: "Edit and ask again", onclick: () => this.#edit() },
      icon("edit"),
      make("span", {}, "Edit"),
    );
    this.#question.replaceChildren(
      make("h2", { className: "unseen" }, results.length ? "Results of tools" : "Question"),
      ...(figures.length ? [make("div", { className: "shown" }, ...figures)] : []),
      ...given,
      ...(question ? [make("p", {}, question)] : []),
      ...(results.length ? [] : [edit]),
    );
    this.#drawBadges();
  }

  /** Says of each picture whether it had to be encoded for the answer that is shown. */
  #drawBadges() {
    const { pictures, answers, shown } = this.#turn;
    const images = answers[shown]?.pixtral?.images ?? [];
    const own = images.slice(images.length - pictures.length);
    this.#question.querySelectorAll(".badge").forEach((badge, i) => {
      badge.hidden = !own[i];
      if (!own[i]) return;
      const { cached, encode_seconds: seconds, width, height, tokens } = own[i];
      badge.replaceChildren(
        ...(cached ? [icon("check"), "cached"] : [`encoded in ${duration(seconds)}`]),
        make("span", {}, `${width}×${height}, ${grouped(tokens)} tokens`),
      );
      badge.classList.toggle("cached", cached);
    });
  }

  #edit() {
    const field = make("textarea", { value: this.#turn.question, "aria-label": "Edit the question", rows: 1 });
    const cancel = () => {
      this.#drawQuestion();
      this.#question.querySelector(".edit").focus();
    };
    const send = (event) => {
      event?.preventDefault();
      const text = field.value.trim();
      if (!text && !this.#turn.pictures.length) return;
      this.#context.on.edit(text);
      this.#drawQuestion();
    };
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        send(event);
      }
    });
    const form = make(
      "form",
      { className: "edit-form", onsubmit: send },
      field,
      make("button", { type: "button", className: "quiet", onclick: cancel }, "Cancel"),
      make("button", { type: "submit", className: "primary" }, "Ask again"),
    );
    this.#question.querySelector("p")?.remove();
    this.#question.querySelector(".edit").replaceWith(form);
    fit(field);
    field.focus();
  }
}
