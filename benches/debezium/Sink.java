// Debezium's embedded engine with a plain sink: each row of a table as JSON under `item:<id>` in Redis, one pipeline a batch.
//
// Arguments: a file of Debezium's properties, the port of Redis. Ends with SIGTERM. Counts what it is given under `sink:events`.

import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.FileReader;
import java.util.List;
import java.util.Properties;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.Pipeline;

public class Sink {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader file = new FileReader(arguments[0])) {
            properties.load(file);
        }
        Jedis redis = new Jedis("127.0.0.1", Integer.parseInt(arguments[1]));
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
            .using(properties)
            .notifying((records, committer) -> {
                store(redis, records);
                for (ChangeEvent<String, String> record : records) {
                    committer.markProcessed(record);
                }
                committer.markBatchFinished();
            })
            .using((success, message, error) -> {
                if (!success) {
                    System.err.println(message);
                    // Whoever waits for this process sees that it ended.
                    Runtime.getRuntime().halt(1);
                }
            })
            .build();
        Thread running = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                engine.close();
                running.join(10_000);
            } catch (Exception failure) {
                System.err.println(failure);
            }
        }));
        engine.run();
    }

    /** One pipeline for a batch. Every reply is read, and an error among them ends the engine. */
    private static void store(Jedis redis, List<ChangeEvent<String, String>> records) {
        Pipeline pipeline = redis.pipelined();
        for (ChangeEvent<String, String> record : records) {
            String key = "item:" + digits(record.key());
            // A deleted row comes as JSON's null.
            if (record.value() == null || record.value().equals("null")) {
                pipeline.unlink(key);
            } else {
                pipeline.set(key, record.value());
            }
        }
        pipeline.incrBy("sink:events", records.size());
        for (Object reply : pipeline.syncAndReturnAll()) {
            if (reply instanceof RuntimeException failure) {
                throw failure;
            }
        }
    }

    /** The number in {"id":1}. */
    private static String digits(String key) {
        return key.substring(key.indexOf(':') + 1, key.length() - 1);
    }
}
