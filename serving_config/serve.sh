#!/bin/sh
# Starts TensorFlow Serving with the configuration in the folder of this file. Further arguments are passed to the server
# and override the flags below: serve.sh --model_config_file=/serving_config/models.canary.config
# The models are in /models, the base path in models.config.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# One intra-op thread, and the other ops in the thread of the request (-1): for a small model, thread switches cost more
# than parallelism gains. The same is true of oneDNN's layouts. Batching made no query faster.
export TF_ENABLE_ONEDNN_OPTS=0
# Labels are read before the models are loaded: without the flag for that, the server would not start with labels.
# num_load_threads, max_num_load_retries, load_retry_interval_micros: with the defaults (0, 5 and 60 s) one corrupt
# version blocks the loads of all models for 5 minutes.
exec tensorflow_model_server \
  --port=8500 \
  --rest_api_port=8501 \
  --model_config_file="$here/models.config" \
  --model_config_file_poll_wait_seconds=10 \
  --allow_version_labels_for_unavailable_models=true \
  --monitoring_config_file="$here/monitoring.config" \
  --tensorflow_intra_op_parallelism=1 \
  --tensorflow_inter_op_parallelism=-1 \
  --num_load_threads=4 \
  --max_num_load_retries=1 \
  --load_retry_interval_micros=1000000 \
  --enable_batching=false \
  --enable_model_warmup=true \
  --enable_grpc_healthcheck_service=true \
  --file_system_poll_wait_seconds=1 \
  "$@"
