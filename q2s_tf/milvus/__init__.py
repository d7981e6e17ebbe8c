"""Search in Milvus: document embeddings published as a collection, and a client with the methods of `q2s_tf.Client`.

`q2s_tf.milvus.publish` fills a collection of its own for each publication and then switches an alias to it.
`q2s_tf.milvus.engine_client.EngineClient` searches behind the alias. Needs the extra `milvus`.
"""
