{{/*
A sidecar in a control-plane pod, for other charts too. Each takes (dict "root" $ "sidecar" X), X one of .Values.sidecars; without one of the
chart's own values (an umbrella chart's pod), $ is this chart's scope: (index .Subcharts "rhizome-seed-server").

It is an init container that goes on (Kubernetes 1.29), so the routes are there before the pod's programs begin. There is no readiness probe: what
is not ready in a pod takes the pod out of its Services, and kube-apiserver has to serve while the shoot is away. With settings.once it ends
before the pod's programs begin.
*/}}
{{- define "rhizome.sidecar.container" -}}
name: rhizome-sidecar
image: {{ include "rhizome.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [rhizome-agent, sidecar, --config, /etc/rhizome/config/config.toml]
{{- if not (.sidecar.settings | default dict).once }}
restartPolicy: Always
startupProbe:
  httpGet: { path: /healthz, port: {{ include "rhizome.sidecar.port" . }} }
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: {{ include "rhizome.sidecar.port" . }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  runAsNonRoot: false
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  seccompProfile: { type: RuntimeDefault }
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
resources:
  requests: { cpu: 10m, memory: 96Mi }
  limits: { memory: 256Mi }
volumeMounts:
  - { name: rhizome-run, mountPath: /run }
  - { name: rhizome-config, mountPath: /etc/rhizome/config, readOnly: true }
  - { name: rhizome-tls, mountPath: /etc/rhizome/tls, readOnly: true }
  {{- if .root.Values.userspaceWireGuard }}
  - { name: rhizome-tun, mountPath: /dev/net/tun }
  {{- end }}
{{- end -}}

{{- define "rhizome.sidecar.volumes" -}}
- name: rhizome-run
  emptyDir: { medium: Memory, sizeLimit: 16Mi }
- name: rhizome-config
  configMap: { name: {{ include "rhizome.sidecar.configMap" . }}, items: [{ key: config.toml, path: config.toml }] }
- name: rhizome-tls
  {{- with .sidecar.tls.csi }}
  csi:
    driver: csi.cert-manager.io
    readOnly: true
    volumeAttributes:
      csi.cert-manager.io/issuer-name: {{ .issuer.name }}
      csi.cert-manager.io/issuer-kind: {{ .issuer.kind | default "Issuer" }}
      csi.cert-manager.io/issuer-group: {{ .issuer.group | default "cert-manager.io" }}
      csi.cert-manager.io/uri-sans: spiffe://{{ $.root.Values.settings.control_plane }}/sidecar/${POD_NAME}
      csi.cert-manager.io/key-usages: digital signature,client auth
      csi.cert-manager.io/duration: {{ .duration | default "24h" }}
  {{- else }}
  secret: { secretName: {{ .sidecar.tls.secretName }}, defaultMode: 0400 }
  {{- end }}
{{- if .root.Values.userspaceWireGuard }}
- name: rhizome-tun
  hostPath: { path: /dev/net/tun, type: CharDevice }
{{- end }}
{{- end -}}

{{/* Its config.toml: what was given, and what follows from the seed server. */}}
{{- define "rhizome.sidecar.settings" -}}
{{- $server := .root.Values }}
{{- $ours := dict
  "control_plane" $server.settings.control_plane
  "server" (printf "%s:%s" $server.service.name (include "rhizome.port" (first $server.settings.listen)))
  "tls_ca" "/etc/rhizome/tls/ca.crt"
  "tls_certificate" "/etc/rhizome/tls/tls.crt"
  "tls_key" "/etc/rhizome/tls/tls.key"
  "runtime_dir" "/run/rhizome"
  "health_listen" (printf "[::]:%s" (include "rhizome.sidecar.port" .)) }}
{{- if $server.settings.seed_networks }}
{{- $_ := set $ours "protected_networks" $server.settings.seed_networks }}
{{- end }}
{{- include "rhizome.toml" (merge (deepCopy (.sidecar.settings | default dict)) $ours) | trim }}
{{- end -}}

{{- define "rhizome.sidecar.port" -}}
{{- .sidecar.healthPort | default 9843 -}}
{{- end -}}

{{- define "rhizome.sidecar.configMap" -}}
{{- printf "%s-sidecar-%s" (include "rhizome.fullname" .root) .sidecar.name -}}
{{- end -}}
