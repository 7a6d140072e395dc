{{- define "pixtral.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "pixtral.labels" -}}
{{ include "pixtral.selector" . }}
app.kubernetes.io/part-of: pixtral-serve
{{- end -}}

{{- define "pixtral.image" -}}
{{ .root.Values.image.registry }}{{ if .root.Values.image.registry }}/{{ end }}pixtral-{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "pixtral.claim" -}}
{{ .Values.model.existingClaim | default "models" }}
{{- end -}}

{{- define "pixtral.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pixtral.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ not . }}
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The settings that all tiers read from their environment. */ -}}
{{- define "pixtral.settings" -}}
{{- $fixed := dict "PIXTRAL_MODEL_DIR" "/models/pixtral" "PIXTRAL_MODEL" .Values.model.name "PIXTRAL_METRICS_LISTEN" "0.0.0.0:9090" "PIXTRAL_HEALTH_LISTEN" "0.0.0.0:8081" -}}
{{ toYaml (merge (dict) .Values.settings $fixed) }}
{{- end -}}

{{- define "pixtral.probe" -}}
grpc:
  port: 8081
periodSeconds: {{ .period }}
timeoutSeconds: {{ .timeout }}
failureThreshold: {{ .failures }}
{{- end -}}

{{- /* Allows DNS: the cluster's own, NodeLocal DNSCache, and GKE's Cloud DNS. */ -}}
{{- define "pixtral.names" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
      podSelector:
        matchLabels:
          k8s-app: kube-dns
    - ipBlock:
        cidr: 169.254.20.10/32
    - ipBlock:
        cidr: 169.254.169.254/32
  ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
{{- end -}}

{{- /* Doubles at once; removes one pod in five minutes, after ten quiet minutes. */ -}}
{{- define "pixtral.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - type: Percent
      value: 100
      periodSeconds: 60
scaleDown:
  stabilizationWindowSeconds: 600
  policies:
    - type: Pods
      value: 1
      periodSeconds: 300
{{- end -}}
