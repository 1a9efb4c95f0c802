#!/bin/sh
# From ABACUS runs to an evaluated model:   sh run.sh RUNS [density | pairs] [DENSITIES]
#
# RUNS holds a folder or archive for each structure, named X_0, X_1, X_2, X_3 for the deformations of
# composition X, each with H(0) (get_hs) and self-consistent H. For the density head there are densities
# in the runs, or beside them in the folder DENSITIES. Pseudopotentials and orbitals are where the
# environment variables ABACUS_PP_PATH and ABACUS_ORB_PATH say. Run it again to go on.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
head=${2:-density}
nextham dataset build "$1" -o set ${3:+--densities "$3"}
nextham dataset info set
cp "$here/$head.toml" .
nextham train "$head.toml"
nextham evaluate "training_$head/model" set --names "*_3" -o report.json --figures figures
