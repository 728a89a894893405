{{/* What the schema cannot say in words. */}}
{{- define "seed.validate" -}}
{{- if gt (int .Values.replicas) 1 }}
{{- fail (printf "replicas: %d: one replica per control plane is supported; two would not know of each other's clients. Leave it at 1 (0 stops it)" (int .Values.replicas)) }}
{{- end }}
{{- if not .Values.settings.control_plane }}
{{- fail "settings.control_plane: required: the name of the control plane, as in the certificates (spiffe://<control_plane>/seed-server)" }}
{{- end }}
{{- if not (or .Values.settings.node_networks .Values.settings.pod_networks .Values.settings.service_networks) }}
{{- fail "settings.node_networks, pod_networks, service_networks: all empty: nothing could be reached; give the shoot's ranges" }}
{{- end }}
{{- if .Values.tls.certManager.enabled }}
{{- if not .Values.tls.certManager.issuerRef.name }}
{{- fail "tls.certManager.issuerRef.name: required: an issuer of this control plane's CA" }}
{{- end }}
{{- else if not .Values.tls.secretName }}
{{- fail "tls.secretName: required: a Secret with ca.crt, tls.crt and tls.key (rhizome-agent pki makes them), or switch tls.certManager on" }}
{{- end }}
{{- if and (or .Values.oidc.caKey .Values.oidc.jwksKey) (not .Values.oidc.configMapName) }}
{{- fail "oidc.configMapName: required: the ConfigMap with oidc.caKey and oidc.jwksKey" }}
{{- end }}
{{- if .Values.enrolment.tokens.secretName }}
{{- if not .Values.enrolment.signing.secretName }}
{{- fail "enrolment.signing.secretName: required: a Secret to sign the credentials with that machines get for their tokens" }}
{{- end }}
{{- if not .Values.persistence.enabled }}
{{- fail "enrolment.tokens: a token is good once, and a new pod has to know of it: it takes persistence.enabled" }}
{{- end }}
{{- end }}
{{- if and .Values.egress.enabled (not .Values.egress.clientCA.secretName) }}
{{- fail "egress.clientCA.secretName: required: without a CA of its clients nobody could be told from anybody; name a Secret with kube-apiserver's" }}
{{- end }}
{{- range .Values.sidecars }}
{{- if eq (empty .tls.secretName) (empty .tls.csi) }}
{{- fail (printf "sidecars: %s: tls.secretName or tls.csi: exactly one of them: where its certificate comes from" .name) }}
{{- end }}
{{- if (.settings | default dict).once }}
{{- if not (and $.Values.direct.secretName $.Values.settings.direct_endpoints $.Values.persistence.enabled) }}
{{- fail (printf "sidecars: %s: settings.once: who leaves cannot be told of anything new: it takes settings.direct_endpoints that stay, direct.secretName and persistence.enabled" .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.ledger.enabled }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.apiServer.to) }}
{{- fail "networkPolicy.apiServer.to: empty: the seed server could not reach the API server, where ledger keeps its addresses; name its endpoints (kubectl get endpointslices --namespace default), such as [{ipBlock: {cidr: 10.243.0.10/32}}]" }}
{{- end }}
{{- if and .Values.ledger.namespace (ne .Values.ledger.namespace .Release.Namespace) (not .Values.ledger.name) }}
{{- fail "ledger.name: required in a namespace of its own: other releases may keep their ledgers there; take the control plane's name" }}
{{- end }}
{{- else if or .Values.ledger.namespace .Values.ledger.name }}
{{- fail "ledger.enabled: false, while ledger.namespace or ledger.name is given: addresses would not be kept there; switch it on, or leave them empty" }}
{{- end }}
{{- if not .Values.settings.health_listen }}
{{- fail "settings.health_listen: empty: the kubelet could not probe the pod" }}
{{- end }}
{{- if and .Values.podMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) }}
{{- fail "networkPolicy.metricsFrom: empty: Prometheus would be kept out, while podMonitor is enabled; name where it runs" }}
{{- end }}
{{- end -}}

{{- define "seed.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "rhizome.fullname" .)) -}}
{{- end -}}

{{- define "seed.ledger" -}}
{{- .Values.ledger.name | default (include "rhizome.fullname" .) -}}
{{- end -}}

{{- define "seed.ledgerNamespace" -}}
{{- .Values.ledger.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* All settings: what was given, and what the chart decides. */}}
{{- define "seed.settings" -}}
{{- $ours := dict
  "tls_ca" (printf "/etc/rhizome/tls/%s" .Values.tls.keys.ca)
  "tls_certificate" (printf "/etc/rhizome/tls/%s" .Values.tls.keys.certificate)
  "tls_key" (printf "/etc/rhizome/tls/%s" .Values.tls.keys.key)
  "runtime_dir" "/run/rhizome" }}
{{- if .Values.ledger.enabled }}
{{- $_ := set $ours "ipam_configmaps" (printf "%s/%s" (include "seed.ledgerNamespace" .) (include "seed.ledger" .)) }}
{{- else }}
{{- $_ := set $ours "ipam_file" "/var/lib/rhizome/addresses.log" }}
{{- end }}
{{- if .Values.oidc.caKey }}
{{- $_ := set $ours "oidc_ca" (printf "/etc/rhizome/oidc/%s" .Values.oidc.caKey) }}
{{- end }}
{{- if .Values.oidc.jwksKey }}
{{- $_ := set $ours "oidc_jwks_file" (printf "/etc/rhizome/oidc/%s" .Values.oidc.jwksKey) }}
{{- end }}
{{- if .Values.direct.secretName }}
{{- $_ := set $ours "direct_secret" (printf "/etc/rhizome/direct/%s" .Values.direct.key) }}
{{- end }}
{{- if .Values.enrolment.tokens.secretName }}
{{- $_ := set $ours "enrolment_file" (printf "/etc/rhizome/enrolment/%s" .Values.enrolment.tokens.key) }}
{{- end }}
{{- if .Values.enrolment.signing.secretName }}
{{- $_ := set $ours "enrolment_secret" (printf "/etc/rhizome/signing/%s" .Values.enrolment.signing.key) }}
{{- end }}
{{- if .Values.denyList.configMapName }}
{{- $_ := set $ours "deny_file" (printf "/etc/rhizome/denied/%s" .Values.denyList.key) }}
{{- end }}
{{- if .Values.egress.enabled }}
{{- $_ := set $ours "egress_listen" (list .Values.egress.listen) }}
{{- $_ := set $ours "egress_client_ca" (printf "/etc/rhizome/egress-client-ca/%s" .Values.egress.clientCA.key) }}
{{- if .Values.egress.certificate.secretName }}
{{- $_ := set $ours "egress_tls_certificate" "/etc/rhizome/egress-tls/tls.crt" }}
{{- $_ := set $ours "egress_tls_key" "/etc/rhizome/egress-tls/tls.key" }}
{{- end }}
{{- end }}
{{- include "rhizome.toml" (merge $ours .Values.settings) | trim }}
{{- end -}}
