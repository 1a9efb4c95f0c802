#!/bin/sh
# From ABACUS runs to an evaluated model:   sh run.sh RUNS [PSEUDO_DIR ORBITAL_DIR]
#
# RUNS holds a folder or archive for each structure, named X_0, X_1, X_2, X_3 for the deformations of
# composition X, each with H(0) (get_hs) and self-consistent H. Run it again to go on.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
files=${2:+--pseudo-dir $2 --orbital-dir $3}
nextham dataset build "$1" -o set $files
nextham dataset info set
cp "$here/train.toml" .
nextham train train.toml
nextham evaluate training/model set --names "*_3" -o report.json --figures figures
