{{- /*
Lists the replicas whose checks are passing or warning, one JSON array a line: application, address, port, weight,
address of the Consul node, metadata. JSON keeps the fields apart, whatever is registered.
Every service with the tag grpc_server is an application. Names outside consul-template's query syntax are left out;
balancer/registration.py checks everything else.
*/ -}}
{{ range services }}{{ if and (contains "grpc_server" .Tags) (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" .Name) -}}
{{ range service (printf "%s|passing,warning" .Name) }}{{ if contains "grpc_server" .Tags -}}
{{ $weight := .Weights.Warning }}{{ if eq .Status "passing" }}{{ $weight = .Weights.Passing }}{{ end -}}
{{ sprig_list .Name .Address .Port $weight .NodeAddress .ServiceMeta | toJSON }}
{{ end }}{{ end }}{{ end }}{{ end -}}
# end
