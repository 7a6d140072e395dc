// Checks custom resources against their own types: KEDA's and the Prometheus operator's, as
// @kubernetes-models has generated them from these projects' Go.
//
//     node tools/deploy/custom_resources.mjs < objects.json
//
// Prints a line for each object that its type refuses, and exits 1 where there is one.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";

const TYPES = { ScaledObject, PodMonitor };

/** The fault of an object, or null; undefined where its type is unknown here. */
export function violation(object) {
  const Type = TYPES[object.kind];
  if (Type === undefined) return undefined;
  // The classes set both themselves, whatever they are given.
  const { apiVersion, kind } = new Type();
  if (object.apiVersion !== apiVersion) return `apiVersion is not ${apiVersion}`;
  try {
    new Type(object).validate();
  } catch (error) {
    return error.message;
  }
  return null;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const objects = JSON.parse(readFileSync(0, "utf8"));
  const checked = objects.filter((object) => violation(object) !== undefined);
  const refused = checked.filter((object) => violation(object) !== null);
  for (const object of refused) {
    console.log(`${object.kind}/${object.metadata?.name}: ${violation(object)}`);
  }
  console.log(`${checked.length} custom resources against their own types: ${refused.length} problems`);
  process.exit(refused.length || !checked.length ? 1 : 0);
}
