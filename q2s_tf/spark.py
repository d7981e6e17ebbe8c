"""The Spark session of a command: the active one, one that Spark's configuration describes, or a local one."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from q2s_tf.errors import InputError

CONFIGURED_BY = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "SPARK_CONF_DIR", "SPARK_HOME")
"""Environment variables of a process that spark-submit has started, or for which Spark is configured otherwise."""


@contextmanager
def spark_session(memory: str, scratch: Path) -> Iterator[Any]:
    """The active Spark session, or a new one, which is stopped at the end.

    A new session is that of the environment: of `spark-submit`, `PYSPARK_SUBMIT_ARGS`, `SPARK_CONF_DIR` or
    `SPARK_HOME`. Without these it is local.

    Args:
        memory: memory of the driver of a local session, such as `2GB`; everything but the Python workers is in it.
        scratch: folder for what a local session spills.

    Raises:
        InputError: PySpark or Java is not installed.
    """
    try:
        from pyspark import SparkConf
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError("backend pyspark needs pyspark: pip install 'q2s_tf[spark]', or use another backend") from None
    active = SparkSession.getActiveSession()
    conf = SparkConf()
    if not any(name in os.environ for name in CONFIGURED_BY):
        cores = os.cpu_count() or 1
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the workers need what is installed here
        conf.setMaster(f"local[{cores}]").set("spark.sql.shuffle.partitions", str(4 * cores))
        conf.set("spark.driver.memory", memory.rstrip("iB").replace(" ", "").lower())
        conf.set("spark.local.dir", str(scratch / "spill"))
        conf.set("spark.ui.enabled", "false").set("spark.ui.showConsoleProgress", "false")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas", category=FutureWarning)
        try:
            session = active or SparkSession.builder.config(conf=conf).getOrCreate()
        except PySparkRuntimeError as error:
            raise InputError(
                f"backend pyspark needs Java 17 or later ({error}); install it or use another backend"
            ) from None
        session.sparkContext.setLogLevel("ERROR")
        session.conf.set("spark.sql.session.timeZone", "UTC")
        try:
            yield session
        finally:
            if active is None:
                session.stop()
