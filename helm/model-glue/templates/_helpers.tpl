{{- define "glue.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "glue.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "glue.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "glue.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "glue.selector" -}}
app.kubernetes.io/name: {{ include "glue.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "glue.labels" -}}
{{ include "glue.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "glue.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "glue.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* image: [root, key] */}}
{{- define "glue.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- $repository := $image.repository -}}
{{- if $root.Values.images.registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $root.Values.images.registry) $image.repository -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "glue.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "glue.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "glue.databaseSecret" -}}
{{- if .Values.development.enabled }}{{ .Values.development.existingSecret }}{{ else }}{{ .Values.database.existingSecret }}{{ end -}}
{{- end -}}

{{- define "glue.databaseEnv" -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "glue.databaseSecret" . }}
      key: {{ ternary "DATABASE_URL" .Values.database.key .Values.development.enabled }}
{{- end -}}

{{- define "glue.redisEnv" -}}
{{- if .Values.development.enabled }}
- name: REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.development.existingSecret }}, key: REDIS_URL}
{{- else if .Values.redis.enabled }}
- name: REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.key }}}
{{- else }}
- {name: REDIS_URL, value: ""}
{{- end }}
{{- end -}}

{{/* common environment: [root, component] */}}
{{- define "glue.commonEnv" -}}
{{- $root := index . 0 -}}
{{ include "glue.databaseEnv" $root }}
- {name: GLUE_HOME, value: /var/lib/glue}
- {name: GLUE_ROOTS, value: {{ $root.Values.models.mountPath | quote }}}
- {name: GLUE_LOG_FORMAT, value: {{ $root.Values.observability.logFormat }}}
- {name: GLUE_METRICS_PORT, value: {{ $root.Values.observability.metricsPort | quote }}}
- {name: HOME, value: /tmp}
- {name: PYTHONUNBUFFERED, value: "1"}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
{{- if $root.Values.observability.otlpEndpoint }}
- {name: GLUE_TRACES, value: otlp}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $root.Values.observability.otlpEndpoint | quote }}}
- {name: OTEL_SERVICE_NAME, value: {{ printf "%s-%s" (include "glue.fullname" $root) (index . 1) }}}
{{- end }}
{{- end -}}

{{- define "glue.s3Env" -}}
{{- if eq .Values.artifacts.kind "s3" }}
- {name: GLUE_ARTIFACTS_URL, value: {{ required "artifacts.s3.url must be set when artifacts.kind is s3" .Values.artifacts.s3.url | quote }}}
{{- with .Values.artifacts.s3.endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.artifacts.s3.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . }}}
{{- end }}
{{- with .Values.artifacts.s3.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef: {name: {{ $.Values.artifacts.s3.existingSecret }}, key: {{ . }}}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "glue.homeVolume" -}}
- name: home
{{- if eq .Values.artifacts.kind "volume" }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-artifacts" (include "glue.fullname" .)) .Values.artifacts.existingClaim }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end -}}

{{- define "glue.modelsVolume" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.models.existingClaim }}
    readOnly: true
{{- end -}}

{{/* the pod that waits for the schema, or brings it: [root] */}}
{{- define "glue.schemaInit" -}}
- name: schema
  image: {{ include "glue.image" (list . "api") }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  command: [python, -m, glue.records.migrate]
  {{- if eq .Values.migrations.mode "hook" }}
  args: [--wait, {{ .Values.migrations.activeDeadlineSeconds | quote }}]
  {{- end }}
  env:
    {{- include "glue.databaseEnv" . | nindent 4 }}
  securityContext:
    {{- include "glue.containerSecurity" . | nindent 4 }}
  resources:
    {{- toYaml .Values.migrations.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* a worker pool with the defaults below it: [root, name] */}}
{{- define "glue.pool" -}}
{{- $root := index . 0 -}}
{{- $own := deepCopy (default dict (index $root.Values.workers (index . 1))) -}}
{{- mergeOverwrite (deepCopy $root.Values.workerDefaults) $own | toYaml -}}
{{- end -}}

{{/* units that are ready or leased, as one number: [root, pool] */}}
{{- define "glue.scaleQuery" -}}
{{- $pool := index . 1 -}}
SELECT count(*) FROM unit JOIN job ON job.id = unit.job_id
WHERE unit.worker_class IN ({{ range $index, $class := $pool.classes }}{{ if $index }}, {{ end }}'{{ $class }}'{{ end }})
{{- if $pool.deviceMemoryBytes }}
AND unit.gpu_memory_bytes <= {{ $pool.deviceMemoryBytes }}
{{- end }}
{{- if $pool.aboveUnitMemoryBytes }}
AND unit.gpu_memory_bytes > {{ $pool.aboveUnitMemoryBytes }}
{{- end }}
AND (unit.state = 'leased'
  OR unit.state = 'ready' AND unit.not_before <= now() + interval '1 minute' AND job.status IN ('queued', 'running'))
{{- end -}}

{{- define "glue.tooling" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $group := index . 2 -}}
{{- if or (eq $root.Values.observability.monitors "always") (and (eq $root.Values.observability.monitors "auto") ($root.Capabilities.APIVersions.Has $group)) -}}{{ $kind }}{{- end -}}
{{- end -}}

{{/* Threads that work touch their file; a file that nobody touches is a thread that hangs. Postgres being away is none. */}}
{{- define "glue.pulseProbes" -}}
startupProbe:
  exec: {command: [sh, -c, 'test -n "$(ls "$GLUE_PULSE_DIR")"']}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  exec: {command: [sh, -c, 'test -z "$(find "$GLUE_PULSE_DIR" -type f ! -newermt "90 seconds ago")"']}
  periodSeconds: 30
  timeoutSeconds: 5
{{- end -}}

{{/* The way to the Hub, for the API and for pools of class hub and nobody else. */}}
{{- define "glue.hubEnv" -}}
{{- with .Values.hub.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.hub.existingSecret }}
- name: GLUE_SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.hub.key }}}
{{- end }}
{{- end -}}

{{/* What workers show the sandbox, and what it wants to see. */}}
{{- define "glue.sandboxToken" -}}
- name: GLUE_SANDBOX_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.sandbox.existingSecret }}, key: {{ .Values.sandbox.key }}}
{{- end -}}

{{/* whether a pool scores models, and so has programs to run: [root, pool] */}}
{{- define "glue.runsPrograms" -}}
{{- $classes := (index . 1).classes -}}
{{- if and (index . 0).Values.sandbox.enabled (or (has "cpu" $classes) (has "gpu" $classes)) -}}yes{{- end -}}
{{- end -}}
