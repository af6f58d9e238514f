#!/usr/bin/env bash
# Runs a command of this repository on a GPU machine without network, from a folder that `bun run gpu:bundle` packed:
#   bash FOLDER/run.sh bun test apps bench libs
# Bun, the library and node_modules are unpacked at the first call and whenever the folder has changed.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash FOLDER/run.sh COMMAND [ARGUMENT...]      in the repository, FOLDER made by `bun run gpu:bundle FOLDER`
   or: bash bench/gpu/run.sh COMMAND [ARGUMENT...]   with the folder in MAGICDEC_BUNDLE (default: .tools/gpu-bundle)

for instance
  bash FOLDER/run.sh bun test apps bench libs
  bash FOLDER/run.sh bun run bench:kernels --device cuda
TEXT
}

fail() {
  echo "run.sh: $1" >&2
  exit 1
}

# The nearest folder above the working directory that is this repository.
repository() {
  local folder=$PWD
  until grep -qs '"name": "magicdec"' "$folder/package.json"; do
    [ "$folder" != / ] || fail "expected to stand in the repository, $PWD is not in it"
    folder=$(dirname "$folder")
  done
  echo "$folder"
}

unpack() { # file: its content, to stdout
  if command -v xz >/dev/null; then
    xz -dc "$1"
  elif command -v python3 >/dev/null; then
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer, 1 << 20)' "$1"
  else
    fail "expected xz or python3 on the PATH to unpack $1, found neither"
  fi
}

# True where the unpacked part named $1 is the one of this bundle; `record` says so afterwards.
is_fresh() { cmp -s "$bundle/$1" "$home/$1.from" 2>/dev/null; }
record() { cp "$bundle/$1" "$home/$1.from"; }

unpack_file() { # packed name, place
  is_fresh "$1" && [ -x "$2" ] && return
  unpack "$bundle/$1" >"$2.partial" || fail "could not unpack $bundle/$1"
  chmod +x "$2.partial"
  mv -f "$2.partial" "$2"
  record "$1"
}

unpack_modules() {
  is_fresh node_modules.tar.xz && return
  if [ -e "$root/node_modules" ] && [ ! -e "$home/node_modules.tar.xz.from" ]; then
    echo "run.sh: node_modules is there already and is used as it is" >&2
    return
  fi
  rm -rf "$root/node_modules"
  unpack "$bundle/node_modules.tar.xz" | tar -x --no-same-owner --unlink-first -C "$root" ||
    fail "could not unpack $bundle/node_modules.tar.xz"
  record node_modules.tar.xz
}

[ $# -gt 0 ] || { usage >&2; exit 2; }
[ "$1" != --help ] || { usage; exit 0; }
root=$(repository)
beside=$(cd "$(dirname "$0")" && pwd)
if [ -e "$beside/bundle.json" ]; then bundle=$beside; else bundle=${MAGICDEC_BUNDLE:-$root/.tools/gpu-bundle}; fi
[ "$(uname -sm)" = "Linux x86_64" ] || fail "expected Linux x86_64, got $(uname -sm)"

home=$root/.tools/gpu
mkdir -p "$home/bin"
# Once unpacked, the folder need not be there again.
if [ -e "$bundle/bundle.json" ] || [ ! -e "$home/bundle.json" ]; then
  for name in bundle.json bun.xz libmagicdec.so.xz node_modules.tar.xz; do
    [ -e "$bundle/$name" ] || fail "expected $bundle/$name, found no file; run: bun run gpu:bundle FOLDER"
  done
  unpack_file bun.xz "$home/bin/bun"
  unpack_file libmagicdec.so.xz "$home/libmagicdec.so"
  unpack_modules
  ln -sf bun "$home/bin/bunx"
  "$home/bin/bun" --version >/dev/null || fail "Bun does not run on this machine"
  cp "$bundle/bundle.json" "$home/bundle.json"
fi

export PATH="$home/bin:$PATH"
export MAGICDEC_LIB="$home/libmagicdec.so"
# What results name as their source: the library's, whatever a checkout here says.
MAGICDEC_COMMIT=$(sed -n 's/^ *"commit": "\(.*\)".*/\1/p' "$home/bundle.json")
grep -q '"dirty": false' "$home/bundle.json" || MAGICDEC_COMMIT="$MAGICDEC_COMMIT with changes"
export MAGICDEC_COMMIT
cd "$root"
exec "$@"
