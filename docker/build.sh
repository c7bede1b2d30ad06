#!/bin/sh
# Builds the images: BASE_IMAGE=python:3.11-slim-bookworm@sha256:… TORCH_INDEX=… docker/build.sh [target…]
# TORCH_CUDA_INDEX is the index for worker-gpu, NODE_IMAGE (by digest) brings the sandbox its Node.js. REGISTRY is put
# before the names.
set -eu

: "${BASE_IMAGE:?name a Python 3.11 image by digest}"
for image in "$BASE_IMAGE" ${NODE_IMAGE:+"$NODE_IMAGE"}; do
    case "$image" in
    *@sha256:????????????????????????????????????????????????????????????????) ;;
    *)
        echo "$image must end in @sha256: and 64 digits, so that two builds start from the same bytes" >&2
        exit 2
        ;;
    esac
done

cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)

[ $# -gt 0 ] || set -- api worker-cpu worker-gpu sandbox
for target in "$@"; do
    index=${TORCH_INDEX:-}
    [ "$target" != worker-gpu ] || index=${TORCH_CUDA_INDEX:-}
    case "$target" in
    sandbox) : "${NODE_IMAGE:?name a Node.js image by digest}" ;;
    worker-*) : "${index:?TORCH_INDEX (or TORCH_CUDA_INDEX for worker-gpu) must say where torch comes from}" ;;
    esac
    ${DOCKER:-docker} build \
        --file docker/Dockerfile \
        --target "$target" \
        --build-arg "BASE_IMAGE=$BASE_IMAGE" \
        --build-arg "NODE_IMAGE=${NODE_IMAGE:-}" \
        --build-arg "TORCH_INDEX=$index" \
        --build-arg "VERSION=$version" \
        --build-arg "REVISION=$revision" \
        --tag "${REGISTRY:+$REGISTRY/}model-glue/$target:$version" \
        .
done
