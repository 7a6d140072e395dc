import assert from "node:assert/strict";
import { test } from "node:test";

import { violation } from "./custom_resources.mjs";

const scaled = () => ({
  apiVersion: "keda.sh/v1alpha1",
  kind: "ScaledObject",
  metadata: { name: "encoder" },
  spec: {
    scaleTargetRef: { name: "encoder" },
    maxReplicaCount: 4,
    triggers: [{ type: "prometheus", metadata: { threshold: "2" } }],
  },
});
const monitor = () => ({
  apiVersion: "monitoring.coreos.com/v1",
  kind: "PodMonitor",
  metadata: { name: "encoder" },
  spec: { selector: {}, podMetricsEndpoints: [{ port: "metrics", interval: "15s" }] },
});

const rule = () => ({
  apiVersion: "monitoring.coreos.com/v1",
  kind: "PrometheusRule",
  metadata: { name: "pixtral" },
  spec: { groups: [{ name: "a", rules: [{ alert: "A", expr: "up == 0", for: "5m" }] }] },
});
const route = () => ({
  apiVersion: "gateway.networking.k8s.io/v1",
  kind: "GRPCRoute",
  metadata: { name: "a" },
  spec: { parentRefs: [{ name: "b" }], rules: [{ backendRefs: [{ name: "c", port: 1 }] }] },
});
const certificate = () => ({
  apiVersion: "cert-manager.io/v1",
  kind: "Certificate",
  metadata: { name: "a" },
  spec: { secretName: "a", issuerRef: { name: "b" }, dnsNames: ["c"] },
});

test("what is right is let through", () => {
  assert.equal(violation(scaled()), null);
  assert.equal(violation(monitor()), null);
  assert.equal(violation(rule()), null);
  assert.equal(violation(route()), null);
  assert.equal(violation(certificate()), null);
  assert.equal(violation({ kind: "Deployment" }), undefined);
});

const mistakes = {
  "a threshold that is no string": [scaled, (o) => (o.spec.triggers[0].metadata.threshold = 2)],
  "no triggers": [scaled, (o) => delete o.spec.triggers],
  "a trigger without a type": [scaled, (o) => delete o.spec.triggers[0].type],
  "a number of replicas in words": [scaled, (o) => (o.spec.maxReplicaCount = "four")],
  "another version": [scaled, (o) => (o.apiVersion = "keda.sh/v1")],
  "no selector": [monitor, (o) => delete o.spec.selector],
  "an interval that is no duration": [
    monitor,
    (o) => (o.spec.podMetricsEndpoints[0].interval = "often"),
  ],
  "a rule without an expression": [rule, (o) => delete o.spec.groups[0].rules[0].expr],
  "a time that is no duration": [rule, (o) => (o.spec.groups[0].rules[0].for = "long")],
  "a backend without a name": [route, (o) => delete o.spec.rules[0].backendRefs[0].name],
  "a port in words": [route, (o) => (o.spec.rules[0].backendRefs[0].port = "grpc")],
  "a certificate without a Secret": [certificate, (o) => delete o.spec.secretName],
  "endpoints that are no list": [monitor, (o) => (o.spec.podMetricsEndpoints = { port: "metrics" })],
};
for (const [name, [make, spoil]] of Object.entries(mistakes)) {
  test(`${name} is found`, () => {
    const object = make();
    spoil(object);
    assert.equal(typeof violation(object), "string");
  });
}
