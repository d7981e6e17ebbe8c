"""The Spark session of a command: the active one, one that Spark's configuration describes, or a local one."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from q2s_tf.errors import InputError


@contextmanager
def spark_session(memory: str, scratch: Path) -> Iterator[Any]:
    """The active Spark session, or a new one, which is local unless Spark is configured and is stopped at the end.

    Args:
        memory: memory of the driver, such as `2GB`; a local session runs everything in it but the Python workers.
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
    cores = os.cpu_count() or 1
    conf = SparkConf()
    if not conf.contains("spark.master"):
        conf.setMaster(f"local[{cores}]").setIfMissing("spark.sql.shuffle.partitions", str(4 * cores))
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the workers need what is installed here
    conf.setIfMissing("spark.driver.memory", memory.rstrip("iB").replace(" ", "").lower())
    conf.setIfMissing("spark.local.dir", str(scratch / "spill"))
    conf.setIfMissing("spark.ui.enabled", "false")
    conf.setIfMissing("spark.ui.showConsoleProgress", "false")
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
