#!/bin/sh
# Starts TensorFlow Serving with the configuration beside this file; further arguments go to the server, where the last
# value of a flag counts: serve.sh --model_config_file=/serving_config/models.canary.config
# Models are expected under /models, as models.config says.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# One thread within an op and one between ops: a small model loses more to hand-overs than it gains. oneDNN's
# layouts cost it more than they save. Batching made no query faster.
export TF_ENABLE_ONEDNN_OPTS=0
# Labels are read before the models are loaded: without the flag for it, the server would not start with any.
exec tensorflow_model_server \
  --port=8500 \
  --rest_api_port=8501 \
  --model_config_file="$here/models.config" \
  --model_config_file_poll_wait_seconds=10 \
  --allow_version_labels_for_unavailable_models=true \
  --monitoring_config_file="$here/monitoring.config" \
  --tensorflow_intra_op_parallelism=1 \
  --tensorflow_inter_op_parallelism=1 \
  --enable_batching=false \
  --enable_model_warmup=true \
  --enable_grpc_healthcheck_service=true \
  --file_system_poll_wait_seconds=1 \
  "$@"
