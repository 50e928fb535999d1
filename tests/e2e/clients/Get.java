import java.net.HttpURLConnection;
import java.net.URI;

/** GET over HTTPS: java Get.java URL. Proxy and trust are the command line's. */
public class Get {
    public static void main(String[] arguments) throws Exception {
        var connection = (HttpURLConnection) URI.create(arguments[0]).toURL().openConnection();
        connection.getInputStream().transferTo(System.out);
        System.out.flush();
    }
}
