{{/* KEDA's question to Postgres: [root, pool] */}}
{{- define "glue.scaleTrigger" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
- type: postgresql
  {{- if ne $pool.scaling "job" }}
  # The query counts pods wanted, not the load of each.
  metricType: AverageValue
  {{- end }}
  metadata:
    query: |-
      {{- include "glue.scaleQuery" (list $root $pool) | nindent 6 }}
    targetQueryValue: "1"
    {{- if ne $pool.scaling "job" }}
    activationTargetQueryValue: "0"
    {{- end }}
  authenticationRef: {name: {{ include "glue.fullname" $root }}-database}
{{- end -}}

{{/* the pod of one slot: [root, pool name, pool] */}}
{{- define "glue.workerPod" -}}
{{- $root := index . 0 -}}
{{- $poolName := index . 1 -}}
{{- $pool := index . 2 -}}
{{- $isJob := eq $pool.scaling "job" -}}
{{- if and (eq $pool.device "cuda") (not $pool.deviceMemoryBytes) -}}
{{- fail (printf "workers.%s.deviceMemoryBytes must be set for device cuda: units are matched with it" $poolName) -}}
{{- end -}}
metadata:
  labels:
    {{- include "glue.labels" $root | nindent 4 }}
    app.kubernetes.io/component: worker-{{ $poolName }}
    model-glue/role: worker
    model-glue/metrics: "true"
    {{- if and $root.Values.hub.enabled (has "hub" $pool.classes) }}
    model-glue/internet: allowed
    {{- end }}
    {{- if include "glue.runsPrograms" (list $root $pool) }}
    model-glue/programs: allowed
    {{- end }}
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    {{- with $pool.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- if $isJob }}
  restartPolicy: Never
  {{- end }}
  serviceAccountName: {{ include "glue.serviceAccount" $root }}
  {{- include "glue.podSecurity" $root | nindent 2 }}
  {{- with $pool.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # The unit's last seconds, a lease for a database that hangs, and time to say goodbye.
  terminationGracePeriodSeconds: {{ add (int $pool.drainSeconds) (int $root.Values.lease.seconds) 30 }}
  initContainers:
    {{- include "glue.schemaInit" $root | nindent 4 }}
  containers:
    - name: worker
      image: {{ include "glue.image" (list $root $pool.image) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [python, -m, workers.slot]
      args: [--name, $(POD_NAME), --classes, {{ join "," $pool.classes | quote }}]
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef: {fieldPath: metadata.name}
        {{- include "glue.commonEnv" (list $root (printf "worker-%s" $poolName)) | nindent 8 }}
        {{- if $isJob }}
        # A pod that ends when there is no work listens to Postgres: a broker's messages would outlive it.
        - {name: REDIS_URL, value: ""}
        - {name: GLUE_IDLE_EXIT_SECONDS, value: {{ $pool.idleExitSeconds | quote }}}
        {{- else }}
        {{- include "glue.redisEnv" $root | nindent 8 }}
        {{- end }}
        {{- include "glue.s3Env" $root | nindent 8 }}
        {{- if include "glue.runsPrograms" (list $root $pool) }}
        - {name: GLUE_SANDBOX_URL, value: {{ printf "http://%s-sandbox:%v" (include "glue.fullname" $root) $root.Values.sandbox.port }}}
        {{- include "glue.sandboxToken" $root | nindent 8 }}
        {{- end }}
        - {name: GLUE_PULSE_DIR, value: /tmp/pulse}
        - {name: GLUE_DEVICE, value: {{ $pool.device }}}
        {{- with $pool.deviceMemoryBytes }}
        - {name: GLUE_GPU_MEMORY_BYTES, value: {{ . | quote }}}
        {{- end }}
        {{- with $pool.engineMemoryBytes }}
        - {name: GLUE_ENGINE_MEMORY_BYTES, value: {{ . | quote }}}
        {{- end }}
        - {name: GLUE_STALL_SECONDS, value: {{ $root.Values.lease.stallSeconds | quote }}}
        - {name: GLUE_DRAIN_SECONDS, value: {{ $pool.drainSeconds | quote }}}
        - {name: GLUE_LEASE_SECONDS, value: {{ $root.Values.lease.seconds | quote }}}
        - {name: GLUE_POLL_SECONDS, value: {{ $root.Values.lease.pollSeconds | quote }}}
        - {name: TOKENIZERS_PARALLELISM, value: "false"}
        - {name: HF_HUB_OFFLINE, value: {{ ternary "0" "1" (and $root.Values.hub.enabled (has "hub" $pool.classes)) | quote }}}
        - {name: XDG_CACHE_HOME, value: /tmp/cache}
        - {name: HF_HOME, value: /tmp/huggingface}
        {{- if has "hub" $pool.classes }}
        {{- include "glue.hubEnv" $root | nindent 8 }}
        {{- end }}
        {{- with $root.Values.hub.cacheBytes }}
        - {name: GLUE_HUB_CACHE_BYTES, value: {{ . | quote }}}
        {{- end }}
      ports:
        - {name: metrics, containerPort: {{ $root.Values.observability.metricsPort }}}
      {{- include "glue.pulseProbes" $root | nindent 6 }}
      securityContext:
        {{- include "glue.containerSecurity" $root | nindent 8 }}
      resources:
        requests:
          {{- toYaml $pool.resources.requests | nindent 10 }}
        limits:
          {{- toYaml $pool.resources.limits | nindent 10 }}
          {{- if gt (int $pool.gpus) 0 }}
          {{ $pool.gpuResource }}: {{ $pool.gpus }}
          {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: home, mountPath: /var/lib/glue}
        - {name: models, mountPath: {{ $root.Values.models.mountPath }}, readOnly: true}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ $pool.scratchSize }}}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $pool.shmSize }}}
    {{- include "glue.homeVolume" $root | nindent 4 }}
    {{- include "glue.modelsVolume" $root | nindent 4 }}
  {{- with $pool.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $pool.tolerations }}
  {{- if gt (int $pool.gpus) 0 }}
  {{- $tolerations = append $tolerations (dict "key" $pool.gpuResource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
