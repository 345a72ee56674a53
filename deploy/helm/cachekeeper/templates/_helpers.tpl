{{- define "cachekeeper.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cachekeeper.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cachekeeper.labels" -}}
{{ include "cachekeeper.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cachekeeper.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "cachekeeper.config" -}}
{{- required "config: give the text of cachekeeper.toml, with a dataset" .Values.config -}}
{{- end -}}

{{- /* The environment of the worker and of `migrate`; `isOwner`: the URL is another role's, and has its password. */ -}}
{{- define "cachekeeper.env" -}}
- name: CACHEKEEPER_CONFIG
  value: /etc/cachekeeper/cachekeeper.toml
- name: CACHEKEEPER__SERVICE__SHUTDOWN_TIMEOUT
  value: {{ printf "%ds" (int .Values.shutdownTimeout) | quote }}
- name: CACHEKEEPER__ADMIN__LISTEN
  value: 0.0.0.0:9464
{{- $name := include "cachekeeper.name" . }}
{{- $space := .Release.Namespace }}
{{- $own := list $name (printf "%s.%s" $name $space) (printf "%s.%s.svc" $name $space) (printf "%s.%s.svc.cluster.local" $name $space) }}
- name: CACHEKEEPER__ADMIN__HOSTS
  value: {{ concat $own .Values.hosts | join "," | quote }}
{{- range $variable, $secret := include "cachekeeper.secrets" . | fromYaml }}
{{- if not (and $.isOwner (eq $variable "CACHEKEEPER__POSTGRES__PASSWORD_FILE")) }}
- name: {{ $variable }}
  value: {{ printf "/run/secrets/cachekeeper/%s" $secret.file }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Which secrets there are: the variable that names the file of each, and where it comes from. */ -}}
{{- define "cachekeeper.secrets" -}}
{{- $secrets := .Values.secrets -}}
CACHEKEEPER__ADMIN__TOKEN_FILE:
  file: admin_token
  name: {{ required "secrets.adminToken.name: name a Secret with a token of 16 characters or more" $secrets.adminToken.name | quote }}
  key: {{ $secrets.adminToken.key | quote }}
{{- if $secrets.readToken.name }}
CACHEKEEPER__ADMIN__READ_TOKEN_FILE:
  file: read_token
  name: {{ $secrets.readToken.name | quote }}
  key: {{ $secrets.readToken.key | quote }}
{{- end }}
{{- if $secrets.postgresPassword.name }}
CACHEKEEPER__POSTGRES__PASSWORD_FILE:
  file: postgres_password
  name: {{ $secrets.postgresPassword.name | quote }}
  key: {{ $secrets.postgresPassword.key | quote }}
{{- end }}
{{- if $secrets.redisPassword.name }}
CACHEKEEPER__REDIS__PASSWORD_FILE:
  file: redis_password
  name: {{ $secrets.redisPassword.name | quote }}
  key: {{ $secrets.redisPassword.key | quote }}
{{- end }}
{{- end -}}

{{- define "cachekeeper.volumes" -}}
- name: secrets
  projected:
    # Readable by the group of the pod, which is the worker's.
    defaultMode: 0440
    sources:
    {{- range $secret := include "cachekeeper.secrets" . | fromYaml }}
      - secret:
          name: {{ $secret.name }}
          items:
            - { key: {{ $secret.key | quote }}, path: {{ $secret.file }} }
    {{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cachekeeper.mounts" -}}
- { name: config, mountPath: /etc/cachekeeper, readOnly: true }
- { name: secrets, mountPath: /run/secrets/cachekeeper, readOnly: true }
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cachekeeper.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "cachekeeper.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- define "cachekeeper.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
