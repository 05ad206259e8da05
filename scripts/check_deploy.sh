#!/usr/bin/env bash
# Checks deploy/, the Dockerfile, the CI workflow and the scripts, each by the tool that knows its language: `make
# deploy-check`, which installs the tools. Starts nothing and asks no network; what needs a running server is in tests/.
set -euo pipefail
cd "$(dirname "$0")/.."

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# Runs one check and shows what it said only if it failed. Inside, `set -e` is off: a function says `|| return`.
check() {
  local what=$1
  shift
  if "$@" >"$SCRATCH/said" 2>&1; then
    printf '  ok  %s\n' "$what"
  else
    printf 'check_deploy: %s: %s failed:\n' "$what" "$1" >&2
    cat "$SCRATCH/said" >&2
    exit 1
  fi
}

for tool in hadolint check-jsonschema kubernetes-validate hcl2tojson shellcheck zizmor promtool cargo; do
  command -v "$tool" >/dev/null || {
    printf 'check_deploy: %s is not on PATH: run make deploy-check, which installs it\n' "$tool" >&2
    exit 1
  }
done

# What .dockerignore lets through and the Dockerfile copies is enough for cargo to understand the workspace.
image_has_every_crate() {
  local words kept
  mapfile -t kept < <(sed -n 's/^!//p' .dockerignore)
  mkdir -p "$SCRATCH/context" "$SCRATCH/image"
  cp -r --parents "${kept[@]}" "$SCRATCH/context" || return
  while read -r -a words; do
    (cd "$SCRATCH/context" && cp -r "${words[@]:0:${#words[@]}-1}" "$SCRATCH/image/${words[-1]}") || return
  done < <(sed -n '1,/^FROM debian/ s/^COPY //p' Dockerfile)
  cargo metadata --locked --format-version 1 --manifest-path "$SCRATCH/image/Cargo.toml" >/dev/null
}

resources_are_there() {
  local file
  while read -r file; do
    [ -f "deploy/$file" ] || { printf 'deploy/kustomization.yaml names %s, which is not there\n' "$file"; return 1; }
  done < <(sed -n 's/^  \(# \)\?- \(kubernetes\/.*\)/\2/p' deploy/kustomization.yaml)
}

kustomized() {
  kubectl kustomize deploy >"$SCRATCH/kustomized.yaml" && kubernetes-validate --strict "$SCRATCH/kustomized.yaml"
}

hcl_is_read() {
  local file
  for file in deploy/terraform/*.tf; do
    hcl2tojson "$file" || return
  done
}

# systemd-analyze wants the program to be there, which on a developer's machine it isn't.
units_are_sound() {
  mkdir -p "$SCRATCH/units"
  local unit
  for unit in deploy/systemd/*.service deploy/systemd/*.socket; do
    sed -E 's#^(Exec[A-Za-z]*=[-+!:@]*)/[^ ]*/corecast#\1/bin/true#' "$unit" >"$SCRATCH/units/$(basename "$unit")"
  done
  systemd-analyze verify "$SCRATCH"/units/*
}

check 'scripts (shellcheck)' shellcheck scripts/*.sh .ci/run
check 'Dockerfile (hadolint)' hadolint Dockerfile
check 'Dockerfile copies every crate (cargo metadata)' image_has_every_crate
check 'compose.yaml (Compose specification)' check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
check 'workflows (GitHub schema)' check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
check 'workflows (zizmor)' zizmor --offline --no-progress --persona pedantic .github/workflows
check 'prometheus.yml (promtool)' promtool check config deploy/prometheus/prometheus.yml
check 'alerts (promtool)' promtool check rules deploy/prometheus/corecast.rules.yml
check 'alerts fire and stay quiet (promtool)' promtool test rules deploy/prometheus/corecast.rules.test.yml
check 'Kubernetes manifests (kubernetes-validate)' kubernetes-validate --strict deploy/kubernetes/*.yaml
check 'kustomization names files that are there' resources_are_there
if command -v kubectl >/dev/null; then
  check 'kustomization (kubectl kustomize)' kustomized
else
  printf '  --  kustomization not built: no kubectl\n'
fi
check 'Terraform is HCL (python-hcl2)' hcl_is_read
if command -v terraform >/dev/null; then
  check 'Terraform is formatted (terraform fmt)' terraform fmt -check -diff deploy/terraform
else
  printf '  --  Terraform formatting not checked: no terraform\n'
fi
if [ -d deploy/systemd ] && command -v systemd-analyze >/dev/null; then
  check 'units (systemd-analyze verify)' units_are_sound
else
  printf '  --  units not checked: no systemd-analyze, or no deploy/systemd\n'
fi
