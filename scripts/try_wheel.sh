#!/usr/bin/env bash
# Install the wheel in dist/ with each extra into an empty environment, and use it there.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
wheel=$(ls "$PWD"/dist/*.whl)
for extra in "" local notebook parquet plot postgres dask; do
  folder=$(mktemp -d)
  "$uv" venv --quiet --python .venv/bin/python "$folder/venv"
  # The locked versions, so that a build fails by what it contains and not by what was published today.
  "$uv" pip install --quiet --python "$folder/venv/bin/python" --constraint <(grep -E '^[a-z].*==' requirements/run.txt | sed -E 's/ *\\$//') "$wheel${extra:+[$extra]}"
  (cd "$folder" && LLM_WARM_UP=false venv/bin/llmkit --version && venv/bin/python -c 'import llmkit; llmkit.Session().close()')
  rm -rf "$folder"
  echo "installed with: ${extra:-no extra}"
done
