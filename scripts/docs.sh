#!/usr/bin/env bash
# Builds the documentation as a site in site/. Broken links, missing pages and docstrings that cannot be read are errors.
# `bash scripts/docs.sh serve` shows it while you write.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" docs
export NO_MKDOCS_2_WARNING=1  # about a version that is not asked for
exec "$python" -m mkdocs "${1:-build}" --quiet
