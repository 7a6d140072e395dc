// The settings at the side: a form, and up to two sets of values where two are compared.

import { find } from "../dom.js";
import { NUMBERS } from "./settings.js";

const SIDES = ["A", "B"];

export class SettingsPanel {
  #form = find("#settings");
  /** The values of the side that the form does not show; null where nothing is compared. */
  #other = null;
  #side = 0;

  constructor() {
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", (event) => this.#check(event.target));
    find("#reset").addEventListener("click", () => this.show({ model: this.#field("model").value }));
    find("#compare").addEventListener("click", () => this.#compare());
    SIDES.forEach((name, i) => {
      find(`#side-${name}`).addEventListener("click", () => this.#turnTo(i));
    });
  }

  /** @param {{id: string, parent: string | null}[]} models */
  offer(models) {
    const menu = this.#field("model");
    const before = menu.value;
    menu.replaceChildren(
      ...models.map(({ id, parent }) => new Option(parent ? `${id} (adapter)` : id, id)),
    );
    menu.value = models.some(({ id }) => id === before) ? before : models[0].id;
  }

  get isComparison() {
    return this.#other !== null;
  }

  /** The first field whose text is not what it must be, or null. */
  get wrong() {
    return this.#form.querySelector("[aria-invalid=true]");
  }

  /** @returns {import("./settings.js").Settings[]} one, or the two that are compared */
  values() {
    const shown = this.#read();
    if (!this.#other) return [shown];
    return this.#side === 0 ? [shown, this.#other] : [this.#other, shown];
  }

  /** @param {import("./settings.js").Settings} values */
  show(values) {
    const text = {
      system: values.system,
      stop: values.stop?.join("\n"),
      schema: values.schema && JSON.stringify(values.schema, null, 2),
      tools: values.tools && JSON.stringify(values.tools, null, 2),
    };
    for (const name of NUMBERS) text[name] = values[name];
    for (const [name, value] of Object.entries(text)) {
      this.#field(name).value = value ?? "";
      this.#check(this.#field(name));
    }
    const menu = this.#field("model");
    if ([...menu.options].some((option) => option.value === values.model)) menu.value = values.model;
  }

  #field(name) {
    return this.#form.elements.namedItem(name);
  }

  #read() {
    const text = (name) => this.#field(name).value.trim();
    const set = NUMBERS.filter((name) => text(name) !== "");
    const values = Object.fromEntries(set.map((name) => [name, Number(text(name))]));
    const stop = this.#field("stop").value.split("\n").filter(Boolean);
    return {
      ...(text("model") && { model: text("model") }),
      ...(text("system") && { system: text("system") }),
      ...values,
      ...(stop.length && { stop }),
      ...(text("schema") && { schema: readJson(text("schema")) }),
      ...(text("tools") && { tools: readJson(text("tools")) }),
    };
  }

  /** Shows beside a JSON field why its text is not valid JSON. */
  #check(field) {
    const note = document.getElementById(`${field.name}-problem`);
    if (!note) return;
    note.textContent = problemOf(field.name, field.value.trim());
    field.setAttribute("aria-invalid", String(note.textContent !== ""));
  }

  #compare() {
    if (this.#other) {
      if (this.#side === 1) this.show(this.#other);
      this.#other = null;
      this.#side = 0;
    } else {
      this.#other = this.#read();
      this.#side = 1;
    }
    this.#showSides();
  }

  #turnTo(side) {
    if (side === this.#side) return;
    const shown = this.#read();
    this.show(this.#other);
    this.#other = shown;
    this.#side = side;
    this.#showSides();
  }

  #showSides() {
    find("#sides").hidden = !this.#other;
    find("#open-settings span").textContent = this.#other ? "Settings A and B" : "Settings";
    find("#compare span").textContent = this.#other ? "End the comparison" : "Compare two settings";
    SIDES.forEach((name, i) => {
      find(`#side-${name}`).setAttribute("aria-pressed", String(i === this.#side));
    });
  }
}

function problemOf(name, text) {
  if (!text) return "";
  const value = readJson(text);
  if (value === undefined) return "This is not JSON.";
  if (name === "tools") return Array.isArray(value) ? "" : "Tools are a list: [ … ].";
  return value && typeof value === "object" && !Array.isArray(value) ? "" : "A schema is an object: { … }.";
}

function readJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
