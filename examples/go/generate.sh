#!/bin/sh
# Generates the client's code from the protos, under gen/. Needs protoc; the plugins come with Go.
set -eu
cd "$(dirname "$0")"
protos=${PIXTRAL_PROTOS:-../../protos}
GOBIN=$PWD/gen/bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.31.0
GOBIN=$PWD/gen/bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.3.0
package=pixtral/v1/chat.proto
PATH=$PWD/gen/bin:$PATH protoc --proto_path="$protos" \
  --go_out=gen --go_opt="paths=source_relative,M$package=example/gen/pixtral/v1" \
  --go-grpc_out=gen --go-grpc_opt="paths=source_relative,M$package=example/gen/pixtral/v1" \
  "$package"
