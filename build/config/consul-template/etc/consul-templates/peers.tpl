{{- /*
The replicas that pass their checks, one a line, every field in JSON's notation, so that nothing that anybody
registers makes another field or line: application, address, port, weight, its node's address, gRPC services, the
name that its health service knows.
Every service with the tag grpc_server is one. Service names that consul-template's own query syntax can't carry
are left out here; all else is checked by membership.lua.
*/ -}}
{{ range services }}{{ if and (contains "grpc_server" .Tags) (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" .Name) -}}
{{ range service (printf "%s|passing,warning" .Name) }}{{ if contains "grpc_server" .Tags -}}
{{ .Name | toJSON }}	{{ .Address | toJSON }}	{{ .Port | toJSON }}	{{ if eq .Status "passing" }}{{ .Weights.Passing | toJSON }}{{ else }}{{ .Weights.Warning | toJSON }}{{ end }}	{{ .NodeAddress | toJSON }}	{{ index .ServiceMeta "grpc_services" | toJSON }}	{{ index .ServiceMeta "grpc_health" | toJSON }}
{{ end }}{{ end }}{{ end }}{{ end -}}
# end
