{{/* Names and labels. */}}
{{- define "rhizome.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "rhizome.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "rhizome.labels" -}}
{{ include "rhizome.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rhizome
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "rhizome.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The port of "address:port". */}}
{{- define "rhizome.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* A map of settings as TOML: JSON's strings, numbers, booleans and arrays of strings are TOML's too. */}}
{{- define "rhizome.toml" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Alerts of files/alerts.yaml without those that are not wanted; each names its runbook. */}}
{{- define "rhizome.alerts" -}}
{{- $given := .Values.prometheusRule -}}
{{- $file := .Files.Get "files/alerts.yaml" | fromYaml -}}
{{- $known := list -}}
groups:
{{- range $group := $file.groups }}
  - name: {{ $group.name }}
    rules:
    {{- range $rule := $group.rules }}
    {{- $known = append $known $rule.alert }}
    {{- if not (has $rule.alert $given.disabled) }}
    {{- $runbook := dict "runbook" (printf "docs/runbooks/%s.md" $rule.alert) }}
    {{- if $given.runbookBase }}
    {{- $_ := set $runbook "runbook_url" (printf "%s/%s.md" (trimSuffix "/" $given.runbookBase) $rule.alert) }}
    {{- end }}
      - {{- toYaml (set (omit $rule "annotations") "annotations" (merge $runbook $rule.annotations)) | nindent 8 }}
    {{- end }}
    {{- end }}
{{- end }}
{{- range $given.disabled }}
{{- if not (has . $known) }}
{{- fail (printf "prometheusRule.disabled: there is no alert %s; there are %s" . (join ", " $known)) }}
{{- end }}
{{- end }}
{{- end -}}
