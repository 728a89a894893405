{{/* What the schema cannot say in words. */}}
{{- define "shoot.validate" -}}
{{- if not .Values.settings.control_plane }}
{{- fail "settings.control_plane: required: the name of the control plane, as in the certificates (spiffe://<control_plane>/shoot-client/<name>)" }}
{{- end }}
{{- if not .Values.settings.server }}
{{- fail "settings.server: required: host:port of the seed server, or of the SNI proxy in front of it" }}
{{- end }}
{{- if not .Values.settings.health_listen }}
{{- fail "settings.health_listen: empty: the kubelet could not probe the pod" }}
{{- end }}
{{- if eq .Values.tls.source "secret" }}
{{- if not .Values.tls.secret.name }}
{{- fail "tls.secret.name: required: a Secret with ca.crt and a pair client-<node>.crt, client-<node>.key for each node (rhizome-agent pki makes them), or another tls.source" }}
{{- end }}
{{- if not (or (contains "$(NODE_NAME)" .Values.tls.secret.keys.certificate) (hasKey .Values.nodeSelector "kubernetes.io/hostname")) }}
{{- fail "tls.secret.keys.certificate: without $(NODE_NAME) all nodes would share one identity and throw each other out; name a pair for each node, or one node in nodeSelector (kubernetes.io/hostname)" }}
{{- end }}
{{- else if eq .Values.tls.source "csi" }}
{{- if not .Values.tls.csi.issuer.name }}
{{- fail "tls.csi.issuer.name: required: an issuer of this control plane's CA" }}
{{- end }}
{{- else if eq .Values.tls.source "token" }}
{{- if not .Values.tls.token.caSecret.name }}
{{- fail "tls.token.caSecret.name: required: a Secret with the CA of the seed server's certificate; the token is shown to nobody else" }}
{{- end }}
{{- else if not .Values.tls.hostPath.path }}
{{- fail "tls.hostPath.path: required: the directory on each node with ca.crt, tls.crt and tls.key" }}
{{- end }}
{{- if and .Values.podMonitor.enabled (include "shoot.loopback" .) }}
{{- fail (printf "settings.health_listen: %s: Prometheus could not reach it, while podMonitor is enabled; give \"[::]:9842\" or \"0.0.0.0:9842\"" .Values.settings.health_listen) }}
{{- end }}
{{- end -}}

{{/* The loopback address that health is served on, empty when it is another one. */}}
{{- define "shoot.loopback" -}}
{{- $host := regexReplaceAll ":[0-9]+$" .Values.settings.health_listen "" -}}
{{- if or (hasPrefix "127." $host) (eq $host "[::1]") -}}
{{- $host | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}
{{- end -}}

{{/* Names of the three files in /etc/rhizome/tls. */}}
{{- define "shoot.keys" -}}
{{- if eq .Values.tls.source "secret" -}}
{{- toYaml .Values.tls.secret.keys -}}
{{- else if eq .Values.tls.source "hostPath" -}}
{{- toYaml .Values.tls.hostPath.keys -}}
{{- else -}}
{{- toYaml (dict "ca" "ca.crt" "certificate" "tls.crt" "key" "tls.key") -}}
{{- end -}}
{{- end -}}

{{/* All settings of the file: what was given, and what the chart decides. Those that differ by node are in the environment. */}}
{{- define "shoot.settings" -}}
{{- $ours := dict "runtime_dir" "/run/rhizome" }}
{{- if .Values.proxyCredentials.secretName }}
{{- $_ := set $ours "proxy_credentials_file" (printf "/etc/rhizome/proxy/%s" .Values.proxyCredentials.key) }}
{{- end }}
{{- include "rhizome.toml" (merge $ours .Values.settings) | trim }}
{{- end -}}
