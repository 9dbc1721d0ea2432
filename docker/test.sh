#!/usr/bin/env bash
# test.sh [PYTHON]: build the image and run tests/docker against it with PYTHON's pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
export CONTAINER_IMAGE=${CONTAINER_IMAGE:-kssm:test}
# Debian's own client first: other ones on a PATH may lack BuildKit.
if [ -z "${DOCKER:-}" ]; then
	DOCKER=docker
	[ ! -x /usr/bin/docker ] || DOCKER=/usr/bin/docker
fi
export DOCKER

# shellcheck disable=SC2086 # a list of arguments
DOCKER_BUILDKIT=1 "$DOCKER" build ${DOCKER_BUILD_ARGS:-} --tag "$CONTAINER_IMAGE" .
"$DOCKER" image inspect --format 'image size: {{.Size}} bytes' "$CONTAINER_IMAGE"
"$python" -m pytest tests/docker
