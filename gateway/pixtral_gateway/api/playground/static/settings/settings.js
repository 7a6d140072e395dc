// The settings of a question, and the fields of a request that they become.

/**
 * The names are OpenAI's and vLLM's. An absent setting has the model's own value.
 * @typedef {object} Settings
 * @property {string} [model]
 * @property {string} [system] the system message
 * @property {string[]} [stop]
 * @property {object} [schema] a JSON schema that the answer follows
 * @property {object[]} [tools] as in OpenAI's API
 * @property {number} [n] and the other numbers of NUMBERS
 */

export const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "presence_penalty",
  "frequency_penalty",
  "repetition_penalty",
  "seed",
  "min_tokens",
  "max_tokens",
  "n",
];

/** The fields of a chat completion beside its messages and the model. */
export function fieldsOf({ model, system, schema, tools, ...rest }) {
  const format = { type: "json_schema", json_schema: { name: "answer", schema } };
  return { ...rest, ...(schema && { response_format: format }), ...(tools && { tools }) };
}

/** A few words about settings, which distinguish two of them. */
export function summaryOf({ model, system, stop, schema, tools, ...numbers }) {
  const told = Object.entries(numbers).map(([name, value]) => `${name} ${value}`);
  if (system) told.push("system message");
  if (stop) told.push("stop");
  if (schema) told.push("schema");
  if (tools) told.push("tools");
  return [model, ...told].filter(Boolean).join(" · ") || "the model's own";
}
